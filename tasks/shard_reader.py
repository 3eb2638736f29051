"""A shard's images in blocks larger than a batch: reading takes milliseconds, however little is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.maps import chunk_of, read
from storage.run import Run

BLOCK_BYTES = 8 * 1024 * 1024


class Images:
    """Entries of one per-image array, for batches that ask for a shard's images in ascending order.

    At most ``BLOCK_BYTES`` are kept, or a chunk or a batch where that is more.
    """

    def __init__(self, run: Run, array: Path, shard: int) -> None:
        self._array = array
        self._first, self._stop = run.bounds(shard)
        self._chunk_rows, each = chunk_of(array)
        self._most = max(self._chunk_rows, BLOCK_BYTES // each)
        self._start = self._end = self._first  # of the block
        self._block: NDArray[Any] = np.empty(0)

    def of(self, images: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """(n, ...) copies of the entries of images, counted within the shard, in ascending order."""
        rows = self._first + images
        if not self._start <= rows[0] <= rows[-1] < self._end:
            self._start = int(rows[0])
            end = self._start + self._most
            end -= end % self._chunk_rows  # or the chunk there would be decoded twice
            self._end = max(int(rows[-1]) + 1, min(end, self._stop))
            self._block = read(self._array, self._start, self._end)
        block: NDArray[Any] = self._block[rows - self._start]
        return block
