"""Samples in the rows of one file: texts in a column, or plain numbers.

Ids and labels are known as soon as a file is open. A text or an array is made when it is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.datasets.arrays import read_archive, read_array_file
from storage.datasets.columns import ID, LABEL, LABELS, Columns
from storage.datasets.labels import LARGEST, problem_with
from storage.files import UnreadableError

_HASHED = 64  # rows that are hashed at once, since an array on the disk may not fit into memory
# The names that pandas gives to the column of row numbers, in CSV, when it reads that again, and in Parquet.
_INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """Facts about the rows of a file.

    Attributes
    ----------
    ids
        One id per row, all different; None if the file has no ids.
    labels
        One class index per row; None if the file has no labels, or several per row.
    several
        The class indices of each row, any number of them; None if the file has no column ``labels``.
    classes
        Class names by label; empty if the labels are numbers.
    features
        Names of the columns from which an array is made; empty if it is not made from columns.
    """

    ids: list[str] | None = None
    labels: list[int] | None = None
    several: list[list[int]] | None = None
    classes: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts(Table):
    """Rows that hold one text each."""

    texts: Any  # pyarrow.LargeStringArray

    def __len__(self) -> int:
        return len(self.texts)

    def load(self, row: int) -> str:
        """Return the text of a row as it is in the file.

        Raises
        ------
        UnreadableError
            If the text is missing or blank.
        """
        text: str | None = self.texts[row].as_py()
        if text is None or not text.strip():
            raise UnreadableError("the text is empty")
        return text

    def digest(self, rows: Sequence[int]) -> str:
        """Return the hexadecimal SHA-256 of the texts of some rows."""
        # Each text comes after its length, so that moving the border between two texts changes the hash.
        digest = hashlib.sha256()
        for row in rows:
            encoded = (self.texts[row].as_py() or "").encode()
            digest.update(b"%d:" % len(encoded) + encoded)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Tensors(Table):
    """Rows that hold one array each.

    Attributes
    ----------
    inputs
        (N, T) or (N, C, T); the array may be mapped from the disk.
    """

    inputs: NDArray[Any]

    def __len__(self) -> int:
        return len(self.inputs)

    def load(self, row: int) -> NDArray[np.float32]:
        """Return a copy of a row, (T,) or (C, T) float32.

        Raises
        ------
        UnreadableError
            If a number is missing or not finite; the message names the first one, counted from 0.
        """
        numbers = _float32(self.inputs[row])
        wrong = np.argwhere(~np.isfinite(numbers))
        if len(wrong):
            *channels, step = wrong[0]
            place = f"feature {self.features[step]}" if self.features else f"number {step}"
            place += "".join(f" of channel {channel}" for channel in channels)
            kind = "NaN" if np.isnan(numbers[tuple(wrong[0])]) else "not finite as float32"
            raise UnreadableError(f"{place} is {kind}")
        return numbers

    def digest(self, rows: Sequence[int]) -> str:
        """Return the hexadecimal SHA-256 of the shape and the float32 numbers of some rows."""
        digest = hashlib.sha256(str(self.inputs.shape[1:]).encode())
        for start in range(0, len(rows), _HASHED):
            numbers = _float32(self.inputs[list(rows[start : start + _HASHED])])
            # Little-endian on every machine, so that the hash does not depend on the machine.
            digest.update(numbers.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()


def read_texts(path: Path, column: str) -> Texts:
    """Read the texts in a column of a CSV or Parquet file, and its labels and ids if it has any.

    Raises
    ------
    ValueError
        If the file cannot be read or is invalid. The message is one line with the file and the reason.
    """
    wanted = (column, LABEL, LABELS, ID)
    columns = Columns(path, wanted, strings=wanted)
    if column not in columns.names:
        there = ", ".join(columns.present)
        raise ValueError(f"dataset.column: {path} has no column {column}; it has {there}")
    return Texts(texts=columns.strings(column).combine_chunks(), **columns.known())


def read_tensors(path: Path) -> Tensors:
    """Read the numbers of an ``.npz``, ``.npy``, CSV or Parquet file.

    An ``.npz`` file holds them in ``inputs``, (N, T) or (N, C, T), and may have ``labels`` (N,), which are
    whole numbers. An ``.npy`` file holds ``inputs`` only. In CSV and Parquet every column except ``label``,
    ``labels`` and ``id`` is a feature, and a missing number is NaN.

    Raises
    ------
    ValueError
        If the file cannot be read or is invalid. The message is one line with the file and the reason.
    """
    suffix = path.suffix.lower()
    if suffix in {".csv", ".parquet"}:
        return _of_columns(path)
    if suffix not in {".npz", ".npy"}:
        raise ValueError(f"dataset.path: {path.name} is neither .npz, .npy, .csv nor .parquet")
    inputs, labels = read_archive(path) if suffix == ".npz" else (read_array_file(path), None)
    if inputs.ndim not in {2, 3} or inputs.dtype.kind not in "biuf" or 0 in inputs.shape[1:]:
        raise ValueError(
            f"{path}: inputs are {inputs.dtype} {inputs.shape}; they must be numbers (N, T) or (N, C, T)"
        )
    if labels is not None:
        _check_labels(path, labels, len(inputs))
    return Tensors(inputs=inputs, labels=None if labels is None else labels.tolist())


def _of_columns(path: Path) -> Tensors:
    """Read the columns of a CSV or Parquet file as features."""
    known = (LABEL, LABELS, ID)
    columns = Columns(path, None, strings=known)
    features = [name for name in columns.names if name not in known]
    for name in features:
        if _INDEX.fullmatch(name):
            raise ValueError(f"{path}: column {name!r} holds only row numbers; write the file without it")
        if name.casefold() in known:
            raise ValueError(f"{path}: rename the column {name!r}: is it {name.casefold()}, or a feature?")
    if not features:
        raise ValueError(f"{path} has no column of numbers besides {', '.join(known)}")
    inputs = np.empty((columns.rows, len(features)), np.float32)
    for place, name in enumerate(features):
        inputs[:, place] = columns.numbers(name)
    return Tensors(inputs=inputs, features=features, **columns.known())


def _check_labels(path: Path, labels: NDArray[Any], rows: int) -> None:
    """Raise ValueError if the labels are not one class index per row."""
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: labels are {labels.dtype} {labels.shape}; they must be whole numbers ({rows},)"
        )
    wrong = (labels < 0) | (labels > LARGEST)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{path}, row {row}: {problem_with(str(labels[row]))}")


def _float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Return a copy of numbers as float32."""
    with np.errstate(over="ignore"):  # a number that is too large becomes infinite, and load reports it
        return np.array(numbers, np.float32)
