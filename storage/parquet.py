"""Parquet files of a run: a file is written whole, by rename, and read without columns from its path."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.files import replacing
from storage.places import for_arrow


def write_table(table: pa.Table, path: Path, group: int | None = None) -> None:
    """Write a table, whole or not at all.

    Parameters
    ----------
    group
        Rows per row group. None leaves the choice to Arrow.
    """
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=group)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a file of the run, or some of its columns."""
    # pq.read_table would read "explainer=..." in the path as a column of the file.
    with opened(path) as file:
        return file.read(columns)


def opened(path: Path) -> pq.ParquetFile:
    """Open a file to read parts of it; the result is a context manager."""
    source, filesystem = for_arrow(path)
    return pq.ParquetFile(source, filesystem=filesystem)
