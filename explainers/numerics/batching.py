"""Run forward passes in chunks that fit the memory of the device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
# The messages of the host's allocator, of CUDA outside PyTorch's own allocator, and of cuBLAS when it
# allocates its workspace. PyTorch raises a plain RuntimeError for these.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def chunks(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(total)``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def in_chunks(evaluate: Callable[[slice], Tensor], total: int, size: int) -> Tensor:
    """Concatenate ``evaluate(slice)`` over consecutive slices of at most ``size`` out of ``total`` rows.

    When the device runs out of memory, the slices are halved, down to one row, and evaluation continues. The
    resulting rows are the same.

    Parameters
    ----------
    evaluate
        From a slice of n rows to a tensor (n, ...); a row must not depend on the others of its slice.
    total
        Number of rows, 1 or more.
    size
        The largest number of rows in a slice.

    Returns
    -------
    Tensor
        (total, ...).

    Raises
    ------
    RuntimeError
        If even a single row does not fit: usually :class:`torch.OutOfMemoryError`; see :func:`out_of_memory`.
    """
    found: Tensor | None = None
    start = 0
    while start < total:
        stop = min(start + size, total)
        try:
            part = evaluate(slice(start, stop))
            # One tensor for all rows. Small ones that stay, between large ones that are freed, would fragment
            # the heap.
            found = part.new_empty(total, *part.shape[1:]) if found is None else found
            found[start:stop] = part
            start = stop
            continue
        except RuntimeError as error:
            if not out_of_memory(error) or size == 1:
                raise
        # This is outside the handler, because its traceback keeps alive what the failed chunk allocated.
        size = max(1, size // 2)
        _warn(size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    assert found is not None
    return found


@cache
def _warn(size: int) -> None:
    """Log a halved size once per process, since each call of :func:`in_chunks` begins with whole chunks."""
    logger.warning("out of memory: this step continues with chunks of at most %s rows", size)


def out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that the device, or the host's allocator, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
