"""CSV listings of images: ``file,label`` and, if wanted, ``xmin,ymin,xmax,ymax``, several rows an image."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.images import Box

BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
Row = tuple[int, Mapping[str, str]]  # line number, cells by column


@dataclass
class Entry:
    """One image of a listing: its file as written there, its label, its boxes in the file's pixels."""

    file: str
    label: int
    boxes: list[Box] = field(default_factory=list)


@dataclass
class _Draft:
    """What the rows of one file have said so far."""

    line: int
    label: str
    boxes: list[Box]


def read_listing(path: Path) -> tuple[list[Entry], list[str]]:
    """The images of a listing in the order in which they appear first, and the class names.

    Labels are whole numbers, taken as they are (then no class names are known), or names, numbered in
    sorted order. Other columns are ignored.

    Raises
    ------
    ValueError
        In one line with the file and the line number: a missing column or cell, a box that is none, two
        labels for one file, a file listed twice without another box, numbers and names mixed.
    """
    drafts: dict[str, _Draft] = {}
    for line, row in _rows(path):
        try:
            _add(drafts, line, row)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    numbered = {draft.label.isdecimal() for draft in drafts.values()}
    if len(numbered) > 1:
        name = next(draft for draft in drafts.values() if not draft.label.isdecimal())
        number = next(draft for draft in drafts.values() if draft.label.isdecimal())
        raise ValueError(
            f"{path}, line {name.line}: label {name.label!r} is a name and {number.label} in line "
            f"{number.line} a number; use one or the other"
        )
    classes = [] if numbered == {True} else sorted({draft.label for draft in drafts.values()})
    index = {name: position for position, name in enumerate(classes)}
    entries = [
        Entry(file, index[draft.label] if classes else int(draft.label), draft.boxes)
        for file, draft in drafts.items()
    ]
    return entries, classes


def _rows(path: Path) -> Iterator[Row]:
    """Line numbers and cells, after a look at the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(path, [name.strip() for name in reader.fieldnames or []])
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: has not as many cells as the header, "
                        f"{len(reader.fieldnames)}; quote names that contain a comma"
                    )
                yield reader.line_num, {key: cell.strip() for key, cell in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error


def _check_header(path: Path, columns: list[str]) -> None:
    missing = [name for name in ("file", "label") if name not in columns]
    if any(name in columns for name in BOX_COLUMNS):
        missing += [name for name in BOX_COLUMNS if name not in columns]
    if missing:
        raise ValueError(
            f"{path}, line 1: the header lacks {', '.join(missing)}; it must have file,label and may have "
            f"{','.join(BOX_COLUMNS)}"
        )


def _add(drafts: dict[str, _Draft], line: int, row: Mapping[str, str]) -> None:
    file, label, box = row["file"], row["label"], _box(row)
    if not file or not label:
        raise ValueError(f"the {'label' if file else 'file'} is missing")
    if label.startswith("-") and label[1:].isdecimal():
        raise ValueError(f"label {label} is negative")
    draft = drafts.setdefault(file, _Draft(line, label, []))
    if draft.label != label:
        raise ValueError(f"{file} has label {label} here and {draft.label} in line {draft.line}")
    if draft.line != line and (box is None or box in draft.boxes):
        raise ValueError(f"{file} is listed again, without another box; the first time is line {draft.line}")
    if box is not None:
        draft.boxes.append(box)


def _box(row: Mapping[str, str]) -> Box | None:
    """The box of a row; None if there are no box columns or all four are empty.

    Boxes without area pass: listings with inclusive coordinates have some. Geometry drops them later.
    """
    cells = [row.get(name, "") for name in BOX_COLUMNS]
    if not any(cells):
        return None
    try:
        xmin, ymin, xmax, ymax = (float(cell) for cell in cells)
    except ValueError as error:
        raise ValueError(f"the box {','.join(cells)} is not four numbers") from error
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))) or xmax < xmin or ymax < ymin:
        raise ValueError(f"the box {','.join(cells)} is not xmin,ymin,xmax,ymax")
    return xmin, ymin, xmax, ymax
