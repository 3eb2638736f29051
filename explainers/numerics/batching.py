"""Forward passes in chunks that fit the device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
# Of the host's allocator, of CUDA outside PyTorch's own allocator, and of cuBLAS when it makes its workspace.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def in_chunks(evaluate: Callable[[slice], Tensor], total: int, size: int) -> Tensor:
    """Concatenate ``evaluate(slice)`` over consecutive slices of at most ``size`` out of ``total`` rows.

    When the device runs out of memory the slice is halved, down to one row, and evaluation goes on: the
    rows that come out are the same.

    Raises
    ------
    torch.OutOfMemoryError
        If even a single row does not fit.
    """
    found: Tensor | None = None
    start = 0
    while start < total:
        stop = min(start + size, total)
        try:
            part = evaluate(slice(start, stop))
            # One block for all: small ones that stay, between large ones that go, leave holes in the heap.
            found = part.new_empty(total, *part.shape[1:]) if found is None else found
            found[start:stop] = part
            start = stop
            continue
        except RuntimeError as error:
            if not out_of_memory(error) or size == 1:
                raise
        # Outside the handler, whose traceback holds on to what the failed chunk allocated.
        size = max(1, size // 2)
        _warn(size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    assert found is not None
    return found


@cache
def _warn(size: int) -> None:
    """Once a process: each call begins with whole chunks again."""
    logger.warning("out of memory: chunks of %s rows and fewer from here on", size)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that the device, or the host's allocator, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)
