"""Reading ahead: while a batch is worked on, the next one is read and copied to the device."""

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


def ahead(
    items: Iterable[Item], read: Read[Item], device: torch.device
) -> Iterator[tuple[Item, dict[str, Tensor]]]:
    """Each item with what ``read`` gives for it, on the device; one more is read meanwhile, in a thread.

    To a GPU the copy goes from pinned memory on a stream of its own, so that kernels run on beside it. What
    ``read`` raises is raised here, when it is that item's turn.
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
            now, coming = coming, reader.submit(fetch, item)
            if now is not None:
                yield _arrived(*now.result())
        if coming is not None:
            yield _arrived(*coming.result())


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """One stream a process: memory that was used on a stream is kept for it."""
    return torch.cuda.Stream(device)


def _arrived(
    item: Item, tensors: dict[str, Tensor], copied: torch.cuda.Event | None
) -> tuple[Item, dict[str, Tensor]]:
    """The item's tensors, for the stream that works: it waits for the copies, and they are kept for it."""
    if copied is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(copied)
        for tensor in tensors.values():
            tensor.record_stream(stream)
    return item, tensors
