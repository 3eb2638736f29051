"""A shard's images in blocks larger than a batch: reading takes milliseconds, however little is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.maps import read, row_bytes
from storage.run import Run

BLOCK_BYTES = 8 * 1024 * 1024


class Images:
    """Entries of one per-image array, for batches that ask for a shard's images in ascending order.

    At most ``BLOCK_BYTES`` are kept, or a batch where that is more.
    """

    def __init__(self, run: Run, array: Path, shard: int) -> None:
        self._array = array
        self._first, self._stop = run.bounds(shard)
        self._block_rows = BLOCK_BYTES // row_bytes(array)
        self._start = self._end = self._first  # of the block
        self._block: NDArray[Any] = np.empty(0)

    def of(self, images: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """(n, ...) copies of the entries of images, counted within the shard, in ascending order."""
        rows = self._first + images
        if not self._start <= rows[0] <= rows[-1] < self._end:
            self._start = int(rows[0])
            self._end = max(int(rows[-1]) + 1, min(self._start + self._block_rows, self._stop))
            self._block = read(self._array, self._start, self._end)
        block: NDArray[Any] = self._block[rows - self._start]
        return block
