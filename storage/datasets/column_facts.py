"""The labels, boxes and ids in the columns of a table, and the dataset of its encoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa

from storage.datasets.bands import read_encoded
from storage.datasets.boxes import check_unit
from storage.datasets.column_cells import Place, boxes_in, cells_of, names_of_boxes
from storage.datasets.column_choice import Choice
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.dataset import Dataset, Drawn, Sample, known, spread
from storage.datasets.decoding import LARGEST
from storage.datasets.geometry import Box
from storage.datasets.labels import number_lists
from storage.datasets.reading import Bands
from storage.errors import LONGEST
from storage.files import UnreadableError


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
    box_labels
        The class index of each box of each row.
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
    box_labels: Sequence[tuple[int, ...]] = ()


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
    sized = keys.box_format == "xywh" and len(choice.boxes) == 1
    boxes = boxes_in(table, choice, sized, place)
    of_boxes = names_of_boxes(table, choice, boxes, place)
    labels, several, own, classes = _labels(table, choice, of_boxes, where, place)
    ids, told = _ids(table, choice, named=keys.id is not None, place=place)
    found = ((place(row), its) for row, its in enumerate(boxes) if its)
    check_unit(where, found, keys.box_unit, "dataset.box_unit")
    words = ", ".join(part for part in (choice.told, told) if part)
    return Facts(table.num_rows, ids, labels, several, boxes, classes, bool(choice.classes), words, own)


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
            facts.box_labels[row] if facts.box_labels else (),
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


# Labels and ids


def _labels(
    table: pa.Table, choice: Choice, of_boxes: list[list[Any]], where: str, place: Place
) -> tuple[list[int | None], list[tuple[int, ...]], list[tuple[int, ...]], list[str]]:
    """Return the label of each row or the labels, the classes of its boxes, and the names of the classes.

    Parameters
    ----------
    of_boxes
        The classes of the boxes of each row as they are written; empty if they are not.
    """
    if choice.label is not None:
        key, lists = "dataset.label", [[cell] for cell in cells_of(table, choice.label)]
    elif choice.labels is not None:
        key, lists = "dataset.labels", [cell or [] for cell in cells_of(table, choice.labels)]
        # Lists of the classes of boxes may be of one length, and of 0 and 1.
        if not choice.classes and choice.labels != choice.box_labels and _are_truth_values(lists):
            raise ValueError(
                f"dataset.labels: the column {choice.labels} of {where} holds {len(lists[0])} times 0 or 1 "
                "in every row, which may say of each class whether it is there; write lists of class indices"
            )
    else:
        return [], [], [], []
    if of_boxes:  # numbered together with the labels, since they are the same classes
        lists = [own + its for own, its in zip(lists, of_boxes, strict=True)]
    numbers, classes = _numbered(lists, choice, key, where, place)
    ends = [len(each) - len(its) for each, its in zip(numbers, of_boxes, strict=True)] if of_boxes else []
    boxes = [tuple(each[end:]) for each, end in zip(numbers, ends, strict=True)] if of_boxes else []
    numbers = [each[:end] for each, end in zip(numbers, ends, strict=True)] if of_boxes else numbers
    if choice.label is not None:
        return [each[0] if each else None for each in numbers], [], boxes, classes
    return [], [tuple(dict.fromkeys(each)) for each in numbers], boxes, classes


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
    ids = ["" if cell is None else str(cell) for cell in cells_of(table, choice.id)]
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name and first.setdefault(name, row) == row:
            continue
        wrong = f"{name} is also the id of {place(first[name])}" if name else "the id is missing"
        if named:
            raise ValueError(f"dataset.id: {place(row)}: {wrong}; ids must be unique")
        return [], f"but ids are the numbers of the rows, since in {place(row)} {wrong}"
    return ids, ""
