"""Reads the inputs of a shard in blocks larger than a batch, since even a small read takes milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.maps import chunk_of, read
from storage.run import Run

BLOCK_BYTES = 8 * 1024 * 1024


class ShardReader:
    """Gives entries of one array with a row per image, to batches that ask for images in ascending order.

    It holds one block of at most ``BLOCK_BYTES``, or one chunk or one batch if that is larger.

    Parameters
    ----------
    run
        The run of the array.
    array
        Path of the array, for example ``run.inputs``.
    shard
        Index of the shard, from 0.
    """

    def __init__(self, run: Run, array: Path, shard: int) -> None:
        self._array = array
        self._first, self._stop = run.bounds(shard)
        self._chunk_rows, each = chunk_of(array)
        self._most = max(self._chunk_rows, BLOCK_BYTES // each)
        self._start = self._end = self._first  # rows of the block
        self._block: NDArray[Any] = np.empty(0)

    def rows(self, images: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Copies of the entries (n, ...) of these images: ascending indices (n,) within the shard."""
        rows = self._first + images
        if not self._start <= rows[0] <= rows[-1] < self._end:
            self._start = int(rows[0])
            end = self._start + self._most
            end -= end % self._chunk_rows  # a chunk that two blocks share would be decoded twice
            self._end = max(int(rows[-1]) + 1, min(end, self._stop))
            self._block = read(self._array, self._start, self._end)
        block: NDArray[Any] = self._block[rows - self._start]
        return block
