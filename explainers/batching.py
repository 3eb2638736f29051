"""Forward passes in chunks that fit the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_chunks(evaluate: Callable[[slice], Tensor], total: int, size: int) -> Tensor:
    """Concatenate ``evaluate(slice)`` over consecutive slices of at most ``size`` out of ``total`` rows.

    When the device runs out of memory the slice is halved, down to one row, and evaluation goes on: the
    rows that come out are the same.

    Raises
    ------
    torch.OutOfMemoryError
        If even a single row does not fit.
    """
    parts: list[Tensor] = []
    start = 0
    while start < total:
        try:
            parts.append(evaluate(slice(start, min(start + size, total))))
            start += size
            continue
        except RuntimeError as error:
            if not out_of_memory(error) or size == 1:
                raise
        # Outside the handler, whose traceback holds on to what the failed chunk allocated.
        size = max(1, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(parts)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that the device, or the host's allocator, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
