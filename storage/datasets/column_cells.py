"""The cells of the columns of a table, and the boxes in them with their classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from storage.datasets.column_choice import Choice
from storage.datasets.geometry import Box

Place = Callable[[int], str]  # the place of a row, for messages and people


def cells_of(table: pa.Table, name: str) -> list[Any]:
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


def names_of_boxes(
    table: pa.Table, choice: Choice, boxes: Sequence[tuple[Box, ...]], place: Place
) -> list[list[Any]]:
    """Return the classes of the boxes of each row as they are written; an empty list if they are not."""
    if choice.box_labels is None:
        return []
    found = []
    for row, (cell, its) in enumerate(zip(cells_of(table, choice.box_labels), boxes, strict=True)):
        # A plain cell is the class of the only box, if the row has one.
        names = cell or [] if isinstance(cell, list | None) else [cell][: len(its)]
        if len(names) != len(its):
            raise ValueError(
                f"dataset.box_labels: {place(row)} has {len(its)} boxes and {len(names)} classes in "
                f"{choice.box_labels}; write one for each box"
            )
        if unknown := [name for name in names if name in {None, "", -1}]:
            raise ValueError(
                f"dataset.box_labels: {place(row)} has a box of the class {unknown[0]!r} in "
                f"{choice.box_labels}; name the class of each box"
            )
        found.append(names)
    return found


def boxes_in(table: pa.Table, choice: Choice, sized: bool, place: Place) -> list[tuple[Box, ...]]:
    """Return the boxes of each row; ``sized`` says that they are written with a width and a height."""
    return [_boxes_of(cells, sized, place, row) for row, cells in enumerate(_box_cells(table, choice))]


def _box_cells(table: pa.Table, choice: Choice) -> list[Any]:
    """The cells of the boxes: lists of boxes, one box, or None."""
    if len(choice.boxes) == 4:
        sides = zip(*(cells_of(table, name) for name in choice.boxes), strict=True)
        return [None if set(box) == {None} else list(box) for box in sides]
    return cells_of(table, choice.boxes[0]) if choice.boxes else []


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
