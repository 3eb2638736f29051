"""Parquet files of a run: a file is written whole, by rename, and read without columns from its path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import LONGEST, one_line
from storage.files import UnreadableError, regular, replacing
from storage.places import for_arrow, is_away

GROUP_ROWS = 1 << 16  # least rows of a group, which is in memory while it is written
# Whatever Arrow raises for a damaged file; an ArrowInvalid is a ValueError, an ArrowKeyError a KeyError.
_DAMAGE = (pa.ArrowException, ValueError, KeyError, OSError)


def write_table(table: pa.Table, path: Path, group: int | None = None, checked: bool = False) -> None:
    """Write a table, whole or not at all.

    Parameters
    ----------
    group
        Rows per row group. None leaves the choice to Arrow.
    checked
        Whether its pages get checksums, which :func:`opened` can compare.
    """
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=group, write_page_checksum=checked)


def write_tables(tables: Iterable[pa.Table], path: Path) -> None:
    """Write tables with the same columns as one, whole or not at all; few of them are in memory at a time.

    There must be at least one table.
    """
    each = iter(tables)
    waiting = [next(each)]
    with (
        replacing(path) as partial,
        pq.ParquetWriter(partial, waiting[0].schema, compression="zstd") as writer,
    ):
        for table in each:
            if sum(map(len, waiting)) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
            waiting.append(table)
        writer.write_table(pa.concat_tables(waiting))


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
        lacking = _lacking(file.schema_arrow, columns, schema, added)
        table = file.read(None if columns is None else [name for name in columns if name not in lacking])
        for name in lacking:
            assert schema is not None
            field = schema.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
        return table


def rows_of(
    path: Path, columns: list[str], schema: pa.Schema, added: Set[str] = frozenset()
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of the run, of which a part is in memory at a time; see :func:`read_table`."""
    with opened(path) as file:
        lacking = _lacking(file.schema_arrow, columns, schema, added)
        for batch in file.iter_batches(columns=[name for name in columns if name not in lacking]):
            for row in batch.to_pylist():
                yield row | dict.fromkeys(lacking)


def _lacking(
    there: pa.Schema, columns: list[str] | None, schema: pa.Schema | None, added: Set[str]
) -> list[str]:
    """Return the wanted columns that a file of an earlier version lacks; it must have the others."""
    wanted = columns or (schema.names if schema else [])
    lacking = [name for name in wanted if name in added and name not in there.names]
    for name in wanted:
        if name in lacking:
            continue
        kind = schema.field(name).type if schema else None
        if name not in there.names or (kind is not None and there.field(name).type != kind):
            raise UnreadableError(f"it has no column {name}{f' of type {kind}' if kind else ''}")
    return lacking


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
