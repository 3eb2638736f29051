"""Parquet files of a run: a file is written whole, by rename, and read without columns from its path."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import LONGEST, one_line
from storage.files import UnreadableError, regular, replacing
from storage.places import for_arrow, is_away

# Whatever Arrow raises for a damaged file; an ArrowInvalid is a ValueError, an ArrowKeyError a KeyError.
_DAMAGE = (pa.ArrowException, ValueError, KeyError, OSError)


def write_table(table: pa.Table, path: Path, group: int | None = None) -> None:
    """Write a table, whole or not at all.

    Parameters
    ----------
    group
        Rows per row group. None leaves the choice to Arrow.
    """
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=group)


def read_table(
    path: Path,
    columns: list[str] | None = None,
    schema: pa.Schema | None = None,
    added: Set[str] = frozenset(),
) -> pa.Table:
    """Read a file of the run, or some of its columns.

    Parameters
    ----------
    columns
        Names of the columns to read; None reads all.
    schema
        The columns that the file must have, or the chosen ones of them; None accepts any.
    added
        Columns of ``schema`` that files of earlier versions lack; they are null then.

    Raises
    ------
    UnreadableError
        If the file is missing, damaged or no file, or if it has other columns; the message is one line.
    """
    # pq.read_table would read "explainer=..." in the path as a column of the file.
    with opened(path) as file:
        there = file.schema_arrow
        wanted = columns or (schema.names if schema else [])
        lacking = [name for name in wanted if name in added and name not in there.names]
        for name in wanted:
            if name in lacking:
                continue
            kind = schema.field(name).type if schema else None
            if name not in there.names or (kind is not None and there.field(name).type != kind):
                raise UnreadableError(f"it has no column {name}{f' of type {kind}' if kind else ''}")
        table = file.read(None if columns is None else [name for name in columns if name not in lacking])
        for name in lacking:
            assert schema is not None
            field = schema.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
        return table


@contextmanager
def opened(path: Path, checked: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a file to read parts of it in the block.

    Parameters
    ----------
    checked
        Whether the checksums of its pages are compared, which only some files have.

    Raises
    ------
    UnreadableError
        If the file is missing, damaged or no file, or if the block finds that its contents are wrong.
    """
    try:
        source, filesystem = for_arrow(regular(path))
        with pq.ParquetFile(source, filesystem=filesystem, page_checksum_verification=checked) as file:
            yield file
    except _DAMAGE as error:
        if is_away(error):
            raise
        why = "it is missing" if isinstance(error, FileNotFoundError) else one_line(error, LONGEST)
        raise UnreadableError(f"{path} cannot be read ({why}); run the job again to repair it") from error
