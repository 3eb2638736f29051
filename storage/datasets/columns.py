"""Columns of CSV and Parquet files, read by Arrow: strings, numbers, and the ids and labels of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import types

from storage.datasets.listing import number_labels, records
from storage.places import for_arrow

LABEL, ID = "label", "id"
_STRING = pa.large_string()  # plain strings hold 2 GiB a column
_BLOCK = 1 << 26  # bytes read at once, which no row of a CSV file can exceed


class Columns:
    """Some columns of a file, in its order.

    Parameters
    ----------
    path
        CSV in UTF-8 with a header, or Parquet.
    wanted
        Names of columns, without the blanks around them; all by default. Those that are not there are left
        out.
    strings
        Names of columns whose cells are left as they stand in a CSV file; the type of the others is
        inferred.

    Raises
    ------
    ValueError
        In one line with the file: it is of another kind or damaged, or two columns have one name.
    """

    def __init__(self, path: Path, wanted: Sequence[str] | None, strings: Sequence[str]) -> None:
        self.path = path
        raw = _names(path)
        self.present = [name.strip() for name in raw]
        if len(set(self.present)) < len(raw):
            twice = next(name for name in self.present if self.present.count(name) > 1)
            raise ValueError(f"{path} has two columns {twice!r}; rename one")
        kept = dict(zip(self.present, raw, strict=True))
        if wanted is not None:
            kept = {ours: theirs for ours, theirs in kept.items() if ours in wanted}
        self.names = list(kept)
        read = _csv if path.suffix.lower() == ".csv" else _parquet
        table = read(path, list(kept.values()), [kept[name] for name in strings if name in kept])
        self._columns = {ours: table.column(theirs) for ours, theirs in kept.items()}
        self.rows: int = table.num_rows

    def strings(self, name: str) -> Any:
        """A column as a pyarrow.ChunkedArray of strings; labels and ids may be whole numbers."""
        column = self._columns[name]
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        named = name in {LABEL, ID} and (types.is_integer(kind) or types.is_boolean(kind))
        if not (text or named or types.is_null(kind)):
            may = "whole numbers or texts" if name in {LABEL, ID} else "texts"
            raise ValueError(f"{self.path}: column {name} holds {kind}; it must hold {may}")
        return column.cast(_STRING)

    def numbers(self, name: str) -> NDArray[np.float32]:
        """A column as float32; what is missing is NaN."""
        column = self._columns[name]
        kind = column.type
        counts = types.is_integer(kind) or types.is_boolean(kind)
        if not (counts or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)):
            raise ValueError(
                f"{self.path}: column {name} holds {self._no_number(column)}; write numbers, leave empty "
                "what is missing, or take the column out"
            )
        numbers: NDArray[np.float32] = column.cast(pa.float32(), safe=False).to_numpy()
        return numbers

    def known(self) -> dict[str, Any]:
        """``ids``, and ``labels`` with ``classes``, as far as the file has these columns.

        Ids must differ; labels are numbered by :func:`storage.datasets.listing.number_labels`.
        """
        known: dict[str, Any] = {}
        if ID in self.names:
            known["ids"] = self._cells(ID)
            self._check_ids(known["ids"])
        if LABEL in self.names:
            numbered = number_labels(self.path, self._cells(LABEL), self.place)
            known["labels"], known["classes"] = numbered
        return known

    def place(self, row: int) -> str:
        """Where a row stands, for a message: the line in which it begins, or its number from 0."""
        if self.path.suffix.lower() != ".csv":
            return f"row {row}"
        line, _ = next(islice(records(self.path), row + 1, None))
        return f"line {line}"

    def _cells(self, name: str) -> list[str]:
        return [(cell or "").strip() for cell in self.strings(name).to_pylist()]

    def _check_ids(self, ids: list[str]) -> None:
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if not name:
                raise ValueError(f"{self.path}, {self.place(row)}: the id is missing")
            if first.setdefault(name, row) != row:
                raise ValueError(
                    f"{self.path}, {self.place(row)}: id {name} stands in {self.place(first[name])} as well; "
                    "ids must differ"
                )

    def _no_number(self, column: Any) -> str:
        """What stands in a column that is not numeric: the first such cell, or the type."""
        missing = {None, *pacsv.ConvertOptions().null_values}
        if types.is_string(column.type):
            for row, cell in enumerate(column.to_pylist()):
                try:
                    float(0 if cell in missing else cell)
                except ValueError:
                    return f"{cell!r} in {self.place(row)}"
        return str(column.type)


def one_line(error: Exception) -> str:
    """The beginning of a library's message, which may quote the file."""
    return str(error).split("\n", maxsplit=1)[0][:200] or type(error).__name__


def _names(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise ValueError(f"dataset.path: {path.name} is neither .csv nor .parquet")
    names = next(records(path), (1, []))[1] if suffix == ".csv" else _open_parquet(path).schema_arrow.names
    if not names:
        raise ValueError(f"{path} is empty; it needs a header and rows")
    return names


def _csv(path: Path, names: list[str], strings: list[str]) -> Any:
    """A pyarrow.Table."""
    data = path.read_bytes()
    if b'"' in data:
        # Arrow takes everything between a quote that is not closed and the next one for one cell, and does
        # not tell.
        _check_records(path)
    try:
        return pacsv.read_csv(
            pa.py_buffer(data),
            pacsv.ReadOptions(block_size=_BLOCK),
            pacsv.ParseOptions(newlines_in_values=True),
            pacsv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(strings, _STRING),
                strings_can_be_null=False,  # a text may read "null"
            ),
        )
    except pa.ArrowException as error:
        _check_records(path)
        raise ValueError(f"{path} is not a CSV file in UTF-8: {one_line(error)}") from error


def _check_records(path: Path) -> None:
    """Read a CSV file strictly, for a message with the line."""
    for _ in records(path):
        pass


def _parquet(path: Path, names: list[str], strings: list[str]) -> Any:  # noqa: ARG001
    """A pyarrow.Table; the file itself says what is a string."""
    try:
        return _open_parquet(path).read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error


def _open_parquet(path: Path) -> Any:
    try:
        source, filesystem = for_arrow(path)
        return pq.ParquetFile(source, filesystem=filesystem)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {one_line(error)}") from error
