"""Prefetching: while one batch is processed, the next one is read and copied to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Item = TypeVar("Item")
Read = Callable[[Item], Mapping[str, NDArray[Any]]]


def prefetched(
    items: Iterable[Item], read: Read[Item], device: torch.device
) -> Iterator[tuple[Item, dict[str, Tensor]]]:
    """Yield each item with its data on the device, and read the next item in a thread meanwhile.

    Copies to a GPU go from pinned memory and on a stream of their own, so that kernels run at the same time.
    An error that ``read`` raises for an item is raised here when that item is due.

    Parameters
    ----------
    items
        What to read, in order; for example the rows of each batch.
    read
        Gives the arrays of one item by name. It runs in the thread.
    device
        Where the tensors go.
    """
    copies = _copies(device) if device.type == "cuda" else None

    def fetch(item: Item) -> tuple[Item, dict[str, Tensor], torch.cuda.Event | None]:
        blocks = {name: torch.from_numpy(block) for name, block in read(item).items()}
        if copies is None:
            return item, blocks, None
        with torch.cuda.stream(copies):
            moved = {name: each.pin_memory().to(device, non_blocking=True) for name, each in blocks.items()}
            return item, moved, copies.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        coming: Future[tuple[Item, dict[str, Tensor], torch.cuda.Event | None]] | None = None
        for item in items:
            # The next read begins before the current item is handed out.
            now, coming = coming, reader.submit(fetch, item)
            if now is not None:
                yield _arrived(*now.result())
        if coming is not None:
            yield _arrived(*coming.result())


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream for copies, one per process: PyTorch keeps freed memory for the stream that used it."""
    return torch.cuda.Stream(device)


def _arrived(
    item: Item, tensors: dict[str, Tensor], copied: torch.cuda.Event | None
) -> tuple[Item, dict[str, Tensor]]:
    """The item and its tensors, ready for the current stream.

    The stream waits for the copies. The tensors are recorded on it, or the allocator could give their memory
    to the next copy while kernels still read it.
    """
    if copied is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(copied)
        for tensor in tensors.values():
            tensor.record_stream(stream)
    return item, tensors
