"""The labels, boxes and ids in the columns of a table, and the dataset of its encoded images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa

from storage.datasets.bands import read_encoded
from storage.datasets.boxes import check_unit
from storage.datasets.column_choice import Choice
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.dataset import Dataset, Drawn, Sample, known, spread
from storage.datasets.decoding import LARGEST
from storage.datasets.geometry import Box
from storage.datasets.labels import number_lists
from storage.datasets.reading import Bands
from storage.errors import LONGEST
from storage.files import UnreadableError

Place = Callable[[int], str]  # the place of a row, for messages and people


@dataclass(frozen=True)
class Facts:
    """What the columns of a table say about its rows; a list is empty where there is no such column.

    Attributes
    ----------
    rows
        The number of rows.
    ids
        One id per row, all different.
    labels
        One class index per row; None where there is none.
    several
        The class indices of each row, where there may be several.
    boxes
        The boxes of each row as (xmin, ymin, xmax, ymax), in the job's unit.
    classes
        Names of the classes; empty if the labels are numbers.
    declared
        Whether the table declares the classes with their numbers, and did not number them in sorted order.
    told
        How the columns were chosen, in words.
    """

    rows: int
    ids: Sequence[str] = ()
    labels: Sequence[int | None] = ()
    several: Sequence[tuple[int, ...]] = ()
    boxes: Sequence[tuple[Box, ...]] = ()
    classes: list[str] = field(default_factory=list)
    declared: bool = False
    told: str = ""


def facts_in(table: pa.Table, choice: Choice, keys: ColumnKeys, where: str, place: Place) -> Facts:
    """Read the chosen columns of a table.

    Parameters
    ----------
    table
        The columns ``choice.facts``, or those that they are in.
    where
        What the table is called in messages.

    Raises
    ------
    ValueError
        If a cell is missing or has another value than it may; the message is one line that begins with the
        key.
    """
    labels, several, classes = _labels(table, choice, where, place)
    ids, told = _ids(table, choice, named=keys.id is not None, place=place)
    sized = keys.box_format == "xywh" and len(choice.boxes) == 1
    boxes = [_boxes_of(cells, sized, place, row) for row, cells in enumerate(_box_cells(table, choice))]
    found = ((place(row), its) for row, its in enumerate(boxes) if its)
    check_unit(where, found, keys.box_unit, "dataset.box_unit")
    words = ", ".join(part for part in (choice.told, told) if part)
    return Facts(table.num_rows, ids, labels, several, boxes, classes, bool(choice.classes), words)


def of_encoded(
    facts: Facts,
    read: Callable[[int], bytes | None],
    place: Place,
    origin: Callable[[Sequence[int]], list[Any]],
    keys: ColumnKeys,
    bands: Bands,
    index: pa.Table | None = None,
    left_out: dict[str, int] | None = None,
    parallel: bool = False,
) -> Dataset:
    """Make a dataset of the rows of a table, whose images are decoded as files are.

    Parameters
    ----------
    read
        Function that returns the encoded image of a row.
    origin
        What belongs to the fingerprint of some rows besides the facts.
    index, parallel
        See :class:`storage.datasets.dataset.Dataset`.
    """
    chosen = spread(range(facts.rows), keys.limit)
    how = keys.reading(bands)

    def sample(at: int) -> Sample:
        row = chosen[at]
        return Sample(
            facts.ids[row] if facts.ids else f"{row:06d}",
            place(row),
            facts.labels[row] if facts.labels else None,
            facts.boxes[row] if facts.boxes else (),
            facts.several[row] if facts.several else (),
        )

    samples = Drawn(len(chosen), sample)
    return Dataset(
        samples,
        facts.classes,
        lambda at, notes: read_encoded(_encoded(read(chosen[at])), how, notes),
        lambda: [*known(samples), origin(chosen)],
        relative_boxes=how.relative_boxes,
        left_out=left_out or {},
        published=facts.declared,
        told=facts.told,
        index=index,
        parallel=parallel,
    )


def _encoded(data: bytes | None) -> bytes:
    if not data:
        raise UnreadableError("there is no image in the row" if data is None else "the image is empty")
    if len(data) > LARGEST:
        raise UnreadableError(f"has {len(data)} bytes; at most {LARGEST} are read")
    return data


def bytes_in(cell: Any, read: Callable[[str], bytes] | None = None) -> bytes | None:
    """Return the encoded image in a cell: bytes, or a dict of ``bytes`` and ``path``.

    Parameters
    ----------
    read
        Function that reads the file at a path where there are no bytes; None: paths are not followed.
    """
    if not isinstance(cell, dict):
        return cast(bytes | None, cell)
    data, path = cell["bytes"], cell["path"]
    if data is None and path and read is not None:
        return read(path)
    if data is None and path:
        raise UnreadableError(f"has no bytes but the path {path[:LONGEST]}, which is not followed")
    return cast(bytes | None, data)


# Cells


def _cells(table: pa.Table, name: str) -> list[Any]:
    """The cells of a column, which may be inside another one."""
    top = next(one for one in table.column_names if name == one or name.startswith(f"{one}."))
    try:
        cells = table.column(top).to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.path: the column {top} holds text that is not UTF-8") from error
    for part in name[len(top) + 1 :].split(".") if name != top else ():
        cells = inside(cells, part)
    return cells


def inside(value: Any, part: str) -> Any:
    """The field of a value with fields, or those of each in a list; None where there is none."""
    if isinstance(value, list):
        return [inside(each, part) for each in value]
    return value.get(part) if isinstance(value, dict) else None


def _labels(
    table: pa.Table, choice: Choice, where: str, place: Place
) -> tuple[list[int | None], list[tuple[int, ...]], list[str]]:
    """Return the label of each row or the labels, and the names of the classes."""
    if choice.label is not None:
        cells = [[cell] for cell in _cells(table, choice.label)]
        numbers, classes = _numbered(cells, choice, "dataset.label", where, place)
        return [each[0] if each else None for each in numbers], [], classes
    if choice.labels is not None:
        lists = [cell or [] for cell in _cells(table, choice.labels)]
        if not choice.classes and _are_truth_values(lists):
            raise ValueError(
                f"dataset.labels: the column {choice.labels} of {where} holds {len(lists[0])} times 0 or 1 "
                "in every row, which may say of each class whether it is there; write lists of class indices"
            )
        numbers, classes = _numbered(lists, choice, "dataset.labels", where, place)
        return [], [tuple(dict.fromkeys(each)) for each in numbers], classes
    return [], [], []


def _are_truth_values(lists: list[list[Any]]) -> bool:
    """Whether all lists are of one length and of 0 and 1, as vectors with one place per class are.

    The list [0, 1] may be the labels of every row.
    """
    first = len(lists[0]) if lists else 0
    alike = first > 1 and all(len(each) == first and {0, 1}.issuperset(each) for each in lists)
    return alike and any(each != [0, 1] for each in lists)


def _numbered(
    cells: list[list[Any]], choice: Choice, key: str, where: str, place: Place
) -> tuple[list[list[int]], list[str]]:
    """Turn the labels of each row into numbers; return the names of the classes, too."""
    if choice.classes:
        for row, each in enumerate(cells):
            for label in each:
                if isinstance(label, str):
                    raise ValueError(
                        f"{key}: {place(row)} has label {label[:80]!r}, and the table declares its classes "
                        "by numbers; write the numbers, or leave the declaration out"
                    )
                if label is not None and not -1 <= label < len(choice.classes):
                    raise ValueError(
                        f"{key}: {place(row)} has label {label}, and the table declares "
                        f"{len(choice.classes)} classes"
                    )
        # Hugging Face writes -1 for an image whose label is not known.
        return [[label for label in each if label not in {None, -1}] for each in cells], list(choice.classes)
    texts = [["" if label is None else str(label).strip() for label in each] for each in cells]
    try:
        numbers, classes = number_lists(where, texts, place)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return list(numbers), classes


def _ids(table: pa.Table, choice: Choice, named: bool, place: Place) -> tuple[list[str], str]:
    """Return the ids; none, and why, if a column that the job does not name cannot hold them."""
    if choice.id is None:
        return [], ""
    ids = ["" if cell is None else str(cell) for cell in _cells(table, choice.id)]
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name and first.setdefault(name, row) == row:
            continue
        wrong = f"{name} is also the id of {place(first[name])}" if name else "the id is missing"
        if named:
            raise ValueError(f"dataset.id: {place(row)}: {wrong}; ids must be unique")
        return [], f"but ids are the numbers of the rows, since in {place(row)} {wrong}"
    return ids, ""


def _box_cells(table: pa.Table, choice: Choice) -> list[Any]:
    """The cells of the boxes: lists of boxes, one box, or None."""
    if len(choice.boxes) == 4:
        sides = zip(*(_cells(table, name) for name in choice.boxes), strict=True)
        return [None if set(box) == {None} else list(box) for box in sides]
    return _cells(table, choice.boxes[0]) if choice.boxes else []


def _boxes_of(cell: Any, sized: bool, place: Place, row: int) -> tuple[Box, ...]:
    """The boxes of a row; ``sized`` says that they are written with a width and a height."""
    if not cell:
        return ()
    boxes = cell if isinstance(cell[0], list) else [cell]
    return tuple(_box(box, sized, place, row) for box in boxes)


def _box(box: Any, sized: bool, place: Place, row: int) -> Box:
    numbers = isinstance(box, list) and all(isinstance(side, int | float) for side in box)
    if not numbers or len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"dataset.boxes: {place(row)} has the box {box}, which is not four finite numbers")
    x0, y0, x1, y1 = map(float, box)
    x1, y1 = (x0 + x1, y0 + y1) if sized else (x1, y1)
    if x1 < x0 or y1 < y0:
        wrong = "its width or height is negative" if sized else "xmax < xmin or ymax < ymin"
        raise ValueError(f"dataset.box_format: {place(row)} has the box {box}, but {wrong}")
    return x0, y0, x1, y1
