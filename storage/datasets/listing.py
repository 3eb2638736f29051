"""CSV listings of images with the columns ``file,label`` and, optionally, ``xmin,ymin,xmax,ymax``.

An image with several boxes has several rows. A column ``labels`` in place of ``label`` holds any number of
labels with semicolons between them; a column ``boxlabel`` beside it says of which of them a row's box is. An
optional column ``mask`` names the file of an image's mask.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from sys import intern

from storage.datasets.boxes import BOX_COLUMNS, read_box
from storage.datasets.geometry import Box
from storage.datasets.labels import number_lists, split_labels

_COLUMNS = ("file", "label", "labels", *BOX_COLUMNS, "boxlabel", "mask")
# What other programs call these columns, which would be ignored under such a name.
_BOX = ",".join(BOX_COLUMNS)
_MEANT = dict.fromkeys(("bbox", "bboxes", "box", "boxes", "boundingbox"), _BOX)
_MEANT |= dict.fromkeys(("maskfile", "maskpath", "segmentation"), "mask")
_MEANT |= dict.fromkeys(("boxclass", "boxclasses", "boxcategory"), "boxlabel")
_ALIKE = 0.85  # of two names, as difflib measures it, of which one is likely meant as the other
csv.field_size_limit(1 << 26)  # a text may be longer than Python's default limit of 128 KiB
Row = tuple[int, Mapping[str, str]]  # line number, cells by column


@dataclass(slots=True)
class Entry:
    """One image of a listing.

    Attributes
    ----------
    file
        The image's file, as written in the listing.
    labels
        Class indices, in the order in which they are written; exactly one if the column is ``label``.
    boxes
        Boxes as they are written in the listing.
    box_labels
        The class index of each box; empty if the listing does not say.
    mask
        The file of the image's mask, as written in the listing.
    """

    file: str
    labels: tuple[int, ...]
    boxes: tuple[Box, ...] = ()
    mask: str | None = None
    box_labels: tuple[int, ...] = ()


@dataclass(slots=True)
class _Draft:
    """The facts that the rows read so far give about one file."""

    line: int
    file: str
    labels: tuple[str, ...]
    mask: str | None
    boxes: tuple[tuple[Box, str | None], ...] = ()


@dataclass
class Listing:
    """The images of a listing, in the order of their first rows.

    Attributes
    ----------
    entries
        The images.
    classes
        The class names; empty if the labels are numbers.
    several
        Whether the column is ``labels``, so that an image may have any number of them.
    """

    entries: list[Entry]
    classes: list[str]
    several: bool


def read_listing(path: Path) -> Listing:
    """Read the images of a listing.

    Labels are numbered by :func:`storage.datasets.labels.number_labels`. Other columns are ignored.

    Raises
    ------
    ValueError
        If a column or a cell is missing, a column occurs twice or is spelt almost as one that is known, a box
        is invalid, rows of a file have different labels or masks, a file is listed again without another box,
        or labels mix numbers and names. The message is one line with the file and the line number.
    """
    drafts: dict[str, _Draft] = {}
    several = False
    for line, row in _rows(path):
        several = "labels" in row
        try:
            _add(drafts, line, row)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    found = list(drafts.values())
    numbers, classes = number_lists(
        path, [d.labels for d in found], lambda index: f"line {found[index].line}"
    )
    entries = []
    for d, its in zip(found, numbers, strict=True):
        own = dict(zip(d.labels, its, strict=True))
        box_labels = tuple(own[label] for _, label in d.boxes if label is not None)
        boxes = tuple(box for box, _ in d.boxes)
        entries.append(Entry(d.file, tuple(own.values()), boxes, d.mask, box_labels))
    return Listing(entries, classes, several)


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, the header first: the line in which a record begins, and its cells.

    Empty lines are skipped.

    Raises
    ------
    ValueError
        If the file is not CSV in UTF-8, or if a record has another number of cells than the header. The
        message is one line.
    """
    line, columns = 1, None  # a quoted cell may contain line breaks, so lines are not records
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # drops a byte order mark
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if cells:
                    columns = columns or len(cells)
                    if len(cells) != columns:
                        raise ValueError(
                            f"{path}, line {line}: the number of cells is not that of the header, {columns}; "
                            "quote cells that contain a comma"
                        )
                    yield line, cells
                line = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: line {line}: {error}") from error


def _rows(path: Path) -> Iterator[Row]:
    """Check the header of a listing; yield the line number of each row, and its cells by column."""
    found = records(path)
    columns = [name.strip() for name in next(found, (1, []))[1]]
    _check_header(path, columns)
    known = [(name, column) for column, name in enumerate(columns) if name in _COLUMNS]
    for line, cells in found:
        yield line, {name: cells[column].strip() for name, column in known}


def _check_header(path: Path, columns: list[str]) -> None:
    """Raise ValueError if a column is missing, occurs twice, or is spelt almost as one that is known.

    A listing has all four columns of boxes or none.
    """
    for name in columns:
        meant = re.sub(r"[\W_]", "", name.casefold())
        if meant in _COLUMNS and name != meant:
            raise ValueError(f"{path}, line 1: rename the column {name!r} to {meant!r}, or to another name")
        if name in _COLUMNS and columns.count(name) > 1:
            raise ValueError(f"{path}, line 1: there are two columns {name!r}; rename one")
        if name not in _COLUMNS and (likely := _likely(meant, columns)):
            raise ValueError(
                f"{path}, line 1: the column {name!r} would be ignored; did you mean {likely}? Rename it, or "
                "to a name that is not alike"
            )
    if len(columns) == 1 and re.search("[;\t|]", columns[0]):
        raise ValueError(f"{path}, line 1: {columns[0]!r} is one column; separate columns by commas")
    if "label" in columns and "labels" in columns:
        raise ValueError(f"{path}, line 1: there are the columns label and labels; rename or remove one")
    missing = [] if "file" in columns else ["file"]
    missing += [] if "label" in columns or "labels" in columns else ["label"]
    if any(name in columns for name in BOX_COLUMNS):
        missing += [name for name in BOX_COLUMNS if name not in columns]
    if "boxlabel" in columns and not {"labels", "xmin"} <= set(columns):
        raise ValueError(f"{path}, line 1: the column boxlabel needs the columns labels and xmin")
    if missing:
        raise ValueError(
            f"{path}, line 1: the header lacks {', '.join(missing)}; it must have file,label (or labels) and "
            f"may have {','.join(BOX_COLUMNS)} and mask"
        )


def _likely(name: str, columns: list[str]) -> str | None:
    """Return the known column that a name stands for, if the header lacks it; None for any other name."""
    absent = [known for known in _COLUMNS if known not in columns]
    if "label" in columns or "labels" in columns:
        absent = [known for known in absent if known not in ("label", "labels")]
    meant = _MEANT.get(name)
    if meant is not None:
        return meant if meant.split(",")[0] in absent else None
    return next(iter(get_close_matches(name, absent, 1, _ALIKE)), None)


def _add(drafts: dict[str, _Draft], line: int, row: Mapping[str, str]) -> None:
    """Add a row to the draft of its file; raise ValueError if it contradicts earlier rows."""
    file, box, mask = row["file"], read_box(row), row.get("mask") or None
    # A million rows have few different labels, which are kept once.
    labels = tuple(map(intern, split_labels(row["labels"]) if "labels" in row else [row["label"]]))
    if not file:
        raise ValueError("the file is missing")
    draft = drafts.setdefault(_same(file), _Draft(line, file, labels, mask))
    if draft.labels != labels:
        here, there = (";".join(each) for each in (labels, draft.labels))
        advice = "" if "labels" in row else f"; if it has both, write {there};{here} into a column labels"
        raise ValueError(f"{file} has label {here} here and {there} in line {draft.line}{advice}")
    if draft.mask != mask:
        raise ValueError(f"{file} has another mask here than in line {draft.line}")
    of = row.get("boxlabel")
    if draft.line != line and (box is None or (box, of) in draft.boxes):
        raise ValueError(f"{file} is listed again, without another box; its first row is line {draft.line}")
    if of is not None and (of or box) and not (box and of in labels):
        has = f"a box of {of or 'no label'}" if box else f"no box, and the boxlabel {of}"
        raise ValueError(f"{file} has {has}; name one of its labels, {row['labels']}, beside each box alone")
    if box is not None:
        draft.boxes += ((box, of),)


def _same(file: str) -> str:
    """Return one spelling for all paths that lead to the same file, such as ``a.png`` and ``./a.png``."""
    same = os.path.normpath(unicodedata.normalize("NFC", file))
    return file if same == file else same  # one text takes half the memory of two
