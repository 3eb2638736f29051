"""Cells of Parquet files, of which only the row groups that are asked for are read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.shard_files import Unchanged
from storage.errors import LONGEST, one_line
from storage.files import UnreadableError
from storage.places import for_arrow, is_away

_ROWS = 8  # that are copied out of a page at once
_BUFFER = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Group:
    """A row group: its file, its number in it, its rows, and the row of the file with which it begins."""

    file: Path
    number: int
    rows: int
    first: int


class RowGroups:
    """The cells of one column, one row at a time.

    Rows that are asked for in their order are read in one pass over their row groups, one page at a time.
    Going back begins the row group again.

    Parameters
    ----------
    groups
        The row groups in the order of the rows.
    column
        Name of the column.
    """

    def __init__(self, groups: Sequence[Group], column: str) -> None:
        self._groups, self._column = groups, column
        self._files = Unchanged([group.file for group in groups])
        self._ends = list(accumulate(group.rows for group in groups))
        self._lock = threading.Lock()
        self._forget()

    def place(self, row: int) -> tuple[Path, int]:
        """The file of a row, and the number of the row in it."""
        group, start = self._group(row)
        return self._groups[group].file, self._groups[group].first + row - start

    def cell(self, row: int) -> Any:
        """Return a cell.

        Raises
        ------
        UnreadableError
            If its row group cannot be read, or if its file changed; the message is the reason in one line.
        """
        with self._lock:
            try:
                return self._cell(row)
            except (pa.ArrowException, OSError) as error:
                self._forget()
                if is_away(error):
                    raise
                raise UnreadableError(f"its row group cannot be read: {one_line(error, LONGEST)}") from error

    def _group(self, row: int) -> tuple[int, int]:
        """The row group of a row, and the row with which it begins."""
        group = bisect_right(self._ends, row)
        return group, self._ends[group] - self._groups[group].rows

    def _forget(self) -> None:
        self._open: int | None = None
        self._batches: Iterator[Any] = iter(())
        self._held: Any = ()
        self._start = 0  # the row of the first cell that is held

    def _cell(self, row: int) -> Any:
        group, start = self._group(row)
        if group != self._open or row < self._start:
            self._forget()
            self._batches, self._open, self._start = self._read(self._groups[group]), group, start
        while row >= self._start + len(self._held):
            self._start += len(self._held)
            self._held = next(self._batches, None)
            if self._held is None:
                self._forget()
                raise UnreadableError("its row group has fewer rows than the file says")
        return self._held[row - self._start].as_py()

    def _read(self, group: Group) -> Iterator[Any]:
        self._files.check(group.file)
        source, filesystem = for_arrow(group.file)
        # A page is read when its turn comes; by default the whole row group would be.
        with pq.ParquetFile(source, filesystem=filesystem, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS, [group.number], [self._column], use_threads=False):
                yield batch.column(0)
