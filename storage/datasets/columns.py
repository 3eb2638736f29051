"""Columns of CSV and Parquet files, read by Arrow: texts, numbers, and the ids and labels of the rows."""

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

from storage.datasets.labels import check_labels, number_labels, number_lists, split_labels
from storage.datasets.listing import records
from storage.errors import LONGEST, one_line
from storage.files import memory_bytes
from storage.places import for_arrow

LABEL, LABELS, ID = "label", "labels", "id"
_NAMED = frozenset({LABEL, LABELS, ID})  # columns that may be whole numbers too
_STRING = pa.large_string()  # Arrow's plain strings hold at most 2 GiB per column
_BLOCK = 1 << 26  # bytes that are read at once; a row of a CSV file must not be longer


class Columns:
    """Some columns of a file, in the order of the file.

    Parameters
    ----------
    path
        A CSV file in UTF-8 with a header, or a Parquet file.
    wanted
        Names of columns, without blanks at their ends. None stands for all columns. Columns that do not exist
        are left out.
    strings
        Names of columns whose cells are read as text in a CSV file. The types of the others are inferred.

    Attributes
    ----------
    present
        Names of all columns of the file.
    names
        Names of the columns that were read.
    rows
        Number of rows.

    Raises
    ------
    ValueError
        If the file is of another kind or damaged, or if two columns have the same name. The message is one
        line with the file.
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
        """Return a column as a pyarrow.ChunkedArray of texts; labels and ids may be whole numbers.

        Raises
        ------
        ValueError
            If the column holds other types; the message is one line.
        """
        column = self._columns[name]
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        named = name in _NAMED and (types.is_integer(kind) or types.is_boolean(kind))
        if not (text or named or types.is_null(kind)):
            may = "whole numbers or texts" if name in _NAMED else "texts"
            raise ValueError(f"{self.path}: column {name} holds {kind}; it must hold {may}")
        return column.cast(_STRING)

    def numbers(self, name: str) -> NDArray[np.float32]:
        """Return a column as float32; a missing number is NaN.

        Raises
        ------
        ValueError
            If the column does not hold numbers; the message is one line.
        """
        column = self._columns[name]
        kind = column.type
        counts = types.is_integer(kind) or types.is_boolean(kind)
        if not (counts or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)):
            raise ValueError(
                f"{self.path}: column {name} holds {self._no_number(column)}; write numbers, leave missing "
                "cells empty, or remove the column"
            )
        numbers: NDArray[np.float32] = column.cast(pa.float32(), safe=False).to_numpy()
        return numbers

    def known(self) -> dict[str, Any]:
        """Return ``ids``, and ``labels`` or ``several`` with ``classes``, if the file has these columns.

        ``several`` are those of a column ``labels``, any number per row. Labels are numbered by
        :func:`storage.datasets.labels.number_labels`.

        Raises
        ------
        ValueError
            If an id is missing or occurs twice, or if the labels are invalid; the message is one line.
        """
        if LABEL in self.names and LABELS in self.names:
            raise ValueError(f"{self.path} has the columns {LABEL} and {LABELS}; rename or remove one")
        known: dict[str, Any] = {}
        if ID in self.names:
            known["ids"] = self._cells(ID)
            self._check_ids(known["ids"])
        if LABEL in self.names:
            numbered = number_labels(self.path, self._cells(LABEL), self.place)
            known["labels"], known["classes"] = numbered
        if LABELS in self.names:
            each = [self._labels(row, cell) for row, cell in enumerate(self._lists())]
            numbers, known["classes"] = number_lists(self.path, each, self.place)
            known["several"] = list(numbers)
        return known

    def place(self, row: int) -> str:
        """Return the place of a row for a message: the line in which it begins, or its number from 0."""
        if self.path.suffix.lower() != ".csv":
            return f"row {row}"
        line, _ = next(islice(records(self.path), row + 1, None))  # the first record is the header
        return f"line {line}"

    def _cells(self, name: str) -> list[str]:
        """Return the cells of a column as texts without blanks at their ends; a missing cell is empty."""
        return [(cell or "").strip() for cell in self.strings(name).to_pylist()]

    def _lists(self) -> list[Any]:
        """Return the cells of the column ``labels``: texts, or lists as Parquet files may have them."""
        column = self._columns[LABELS]
        if types.is_list(column.type) or types.is_large_list(column.type):
            lists: list[Any] = column.to_pylist()
            return lists
        return self._cells(LABELS)

    def _labels(self, row: int, cell: Any) -> list[str]:
        """Return the labels of a cell of the column ``labels``."""
        try:
            if not isinstance(cell, list):
                return split_labels(cell or "")
            labels = [str(label).strip() for label in cell]
            check_labels(labels, ";".join(labels))
            return labels
        except ValueError as error:
            raise ValueError(f"{self.path}, {self.place(row)}: {error}") from error

    def _check_ids(self, ids: list[str]) -> None:
        """Raise ValueError if an id is missing or occurs twice."""
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if not name:
                raise ValueError(f"{self.path}, {self.place(row)}: the id is missing")
            if first.setdefault(name, row) != row:
                raise ValueError(
                    f"{self.path}, {self.place(row)}: id {name} is also in {self.place(first[name])}; ids "
                    "must be unique"
                )

    def _no_number(self, column: Any) -> str:
        """Describe a column that is not numeric: its first cell that is no number, or its type."""
        missing = {None, *pacsv.ConvertOptions().null_values}
        if types.is_string(column.type):
            for row, cell in enumerate(column.to_pylist()):
                try:
                    float(0 if cell in missing else cell)
                except ValueError:
                    return f"{cell!r} in {self.place(row)}"
        return str(column.type)


def _names(path: Path) -> list[str]:
    """Return the names of a file's columns; raise ValueError if the file has none or is of another kind."""
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise ValueError(f"dataset.path: {path.name} is neither .csv nor .parquet")
    names = next(records(path), (1, []))[1] if suffix == ".csv" else open_parquet(path).schema_arrow.names
    if not names:
        raise ValueError(f"{path} is empty; it needs a header and rows")
    return names


def _csv(path: Path, names: list[str], strings: list[str]) -> Any:
    """Read some columns of a CSV file as a pyarrow.Table; ``strings`` are read as texts."""
    data = path.read_bytes()
    if b'"' in data:
        # Arrow reads everything from an unclosed quote to the next quote as one cell, without an error.
        _check_records(path)
    try:
        return pacsv.read_csv(
            pa.py_buffer(data),
            pacsv.ReadOptions(block_size=_BLOCK),
            pacsv.ParseOptions(newlines_in_values=True),  # a quoted text may contain line breaks
            pacsv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(strings, _STRING),
                strings_can_be_null=False,  # "null" may be a text
            ),
        )
    except pa.ArrowException as error:
        _check_records(path)
        raise ValueError(f"{path} is not a CSV file in UTF-8: {one_line(error, LONGEST)}") from error


def _check_records(path: Path) -> None:
    """Read a CSV file strictly, which raises an error with the number of the line."""
    for _ in records(path):
        pass


def _parquet(path: Path, names: list[str], strings: list[str]) -> Any:  # noqa: ARG001
    """Read some columns of a Parquet file as a pyarrow.Table; the file itself says which are texts."""
    try:
        opened = open_parquet(path)
        size = opened.metadata.num_rows * len(
            names
        )  # a few bytes of the file may stand for any number of rows
        if size > memory_bytes():
            raise ValueError(f"{path} claims {opened.metadata.num_rows} rows, which do not fit into memory")
        return opened.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error, LONGEST)}") from error


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; raise ValueError if it is none."""
    try:
        source, filesystem = for_arrow(path)
        return pq.ParquetFile(source, filesystem=filesystem)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {one_line(error, LONGEST)}") from error
