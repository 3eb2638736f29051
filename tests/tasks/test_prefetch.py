"""Reading ahead: in order, one batch and no more, and no error is lost in the thread."""

import threading

import numpy as np
import pytest
import torch

from tasks.prefetch import prefetched

CPU = torch.device("cpu")
SECONDS = 10.0  # that a thread may take to get its turn


def test_batches_come_in_order_with_their_items() -> None:
    found = list(prefetched([3, 1, 2], lambda item: {"values": np.full(item, item)}, CPU))
    assert [item for item, _ in found] == [3, 1, 2]
    for item, blocks in found:
        assert torch.equal(blocks["values"], torch.full((item,), item))
    assert list(prefetched([], lambda item: {}, CPU)) == []


def test_the_next_batch_is_read_while_one_is_worked_on_and_none_after_it() -> None:
    begun = [threading.Event() for _ in range(4)]

    def read(item: int) -> dict[str, np.ndarray]:
        begun[item].set()
        return {}

    for item, _ in prefetched(range(4), read, CPU):
        if item < 3:
            assert begun[item + 1].wait(SECONDS)
        assert not any(event.wait(0.02) for event in begun[item + 2 :])


def test_what_reading_raises_is_raised_when_its_batch_is_due() -> None:
    def read(item: int) -> dict[str, np.ndarray]:
        if item == 1:
            raise OSError("damaged")
        return {}

    batches = prefetched(range(3), read, CPU)
    assert next(batches)[0] == 0
    with pytest.raises(OSError, match="damaged"):
        next(batches)


def test_no_thread_is_left_when_the_work_fails() -> None:
    def work() -> None:
        for _ in prefetched(range(3), lambda item: {}, CPU):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        work()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
