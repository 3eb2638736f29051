"""Chunks of forward passes, and what happens when the device is full."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from explainers.numerics.batching import in_chunks

ROWS = torch.arange(20).view(10, 2)


class Device:
    """Evaluates rows, remembers the slices asked for, and holds at most ``memory`` rows."""

    def __init__(self, rows: torch.Tensor, memory: int, error: RuntimeError) -> None:
        self.rows, self.memory, self.error = rows, memory, error
        self.asked: list[tuple[int, int]] = []

    def __call__(self, rows: slice) -> torch.Tensor:
        self.asked.append((rows.start, rows.stop))
        if rows.stop - rows.start > self.memory:
            raise self.error
        return self.rows[rows] * 2


FULL = torch.OutOfMemoryError("CUDA out of memory")


@given(total=st.integers(1, 40), size=st.integers(1, 50), memory=st.integers(1, 50))
def test_rows_come_out_once_and_in_order_for_any_chunk_size_and_memory(total, size, memory):
    rows = torch.arange(total)[:, None]
    device = Device(rows, memory, FULL)
    assert torch.equal(in_chunks(device, total, size), rows * 2)
    assert all(0 < stop - start <= size for start, stop in device.asked)


def test_a_full_device_halves_the_chunk_and_keeps_it_halved():
    device = Device(ROWS, 3, FULL)
    assert torch.equal(in_chunks(device, 10, 8), ROWS * 2)
    assert device.asked == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


def test_memory_lost_halfway_does_not_repeat_what_is_done():
    device = Device(ROWS, 4, FULL)

    def shrinking(rows: slice) -> torch.Tensor:
        device.memory = 4 if rows.start < 4 else 1
        return device(rows)

    assert torch.equal(in_chunks(shrinking, 10, 4), ROWS * 2)
    assert device.asked[:4] == [(0, 4), (4, 8), (4, 6), (4, 5)]
    assert (0, 1) not in device.asked


def test_a_full_host_is_recognised_by_its_message():
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    assert torch.equal(in_chunks(Device(ROWS, 5, error), 10, 10), ROWS * 2)


def test_a_row_that_does_not_fit_alone_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(Device(ROWS, 0, FULL), 10, 4)


def test_another_error_is_raised_at_once():
    device = Device(ROWS, 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        in_chunks(device, 10, 4)
    assert device.asked == [(0, 4)]
