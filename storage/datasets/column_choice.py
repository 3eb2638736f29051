"""Which columns of a table hold the images, labels, boxes and ids of a dataset: named by the job, or found.

Columns inside others are written with dots, e.g. ``objects.bbox``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import types

from storage.datasets.boxes import BOX_COLUMNS
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.column_types import (
    are_boxes,
    are_names,
    classes_of,
    features_of,
    is_encoded,
    is_name,
    is_number,
    of_feature,
    told_type,
)

_NAMES = {
    "label": ("label", "cls", "class", "target"),
    "labels": ("labels", "label"),
    "boxes": ("boxes", "bbox", "bboxes"),
    "id": ("id", "image_id", "sample_id", "__key__"),
}
# What the class of a box is called in a column that lies beside the one of the boxes inside another one.
_OF_BOXES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "name")
_MOST_TOLD = 12  # columns that a message lists


@dataclass(frozen=True)
class Choice:
    """The columns that are read.

    Attributes
    ----------
    image, label, labels, boxes, box_labels, id
        Names of columns. ``boxes`` are one column of lists, or four of numbers. ``box_labels`` holds the
        class of each box, and may be the column ``labels``.
    classes
        Names of the classes where the table declares them, as a ClassLabel of Hugging Face does.
    told
        How each was chosen, in words.
    """

    image: str = ""
    label: str | None = None
    labels: str | None = None
    boxes: tuple[str, ...] = ()
    id: str | None = None
    classes: tuple[str, ...] = ()
    told: str = ""
    box_labels: str | None = None

    @property
    def facts(self) -> list[str]:
        """The columns of everything but the image, each once."""
        named = (self.label, self.labels, *self.boxes, self.id, self.box_labels)
        return list(dict.fromkeys(name for name in named if name is not None))


def choose(
    schema: pa.Schema,
    keys: ColumnKeys,
    where: str,
    image: str | None = None,
    ids: str = "the numbers of the rows",
) -> Choice:
    """Choose the columns of a table.

    Parameters
    ----------
    schema
        Its columns; their metadata may hold the features of Hugging Face's datasets.
    keys
        The job's keys.
    where
        What the table is called in messages.
    image
        Where the images are, if it is known.
    ids
        What the ids are if there is no column of ids, in words.

    Raises
    ------
    ValueError
        If a named column is not there or holds something else, or if it is unclear which column is meant.
        The message is one line that begins with the key.
    """
    return _Chooser(schema, keys, where).choice(image, ids)


def holders(schema: pa.Schema, names: Iterable[str]) -> list[str]:
    """Return the columns of a table that hold these ones, which may be inside others."""
    return list(dict.fromkeys(name if name in schema.names else name.split(".")[0] for name in names))


def declared_classes(schema: pa.Schema, name: str | None) -> tuple[str, ...]:
    """Return the names of the classes of a column where the table declares them, as Hugging Face's do."""
    return classes_of(features_of(schema), name or "")


class _Chooser:
    def __init__(self, schema: pa.Schema, keys: ColumnKeys, where: str) -> None:
        self._schema, self._keys, self._where = schema, keys, where
        self._kinds = dict(_flat((field.name, field.type) for field in schema))
        self._features = features_of(schema)
        self._told: list[str] = []

    def choice(self, image: str | None, ids: str) -> Choice:
        if image is None:
            image = self._image()
        else:
            self._told.append(f"image from {image}")
        label, labels = self._labels()
        boxes = self._boxes()
        box_labels = self._box_labels(label, labels, boxes)
        if box_labels and not (label or labels):
            # A plain cell is the class of the only box, and the label of the image.
            label, labels = (box_labels, None) if is_name(self._kinds[box_labels]) else (None, box_labels)
            self._told.append("labels are the classes of the boxes")
        name = self._named("id", is_name, "whole numbers or texts") or self._first("id", is_name)
        if name is None:
            self._told.append(f"ids are {ids}")
        names = classes_of(self._features, label or labels or "")
        self._check_alike(names, label or labels, box_labels)
        if names:
            self._told.append(f"{len(names)} classes as the table declares them")
        return Choice(image, label, labels, boxes, name, names, ", ".join(self._told), box_labels)

    def _named(self, key: str, fits: Any, what: str) -> str | None:
        """The column that a key of the job names."""
        name: str | None = getattr(self._keys, key)
        if name is None:
            return None
        if name not in self._kinds:
            raise ValueError(f"dataset.{key}: {self._where} has no column {name}; it has {self._there()}")
        if not fits(self._kinds[name]):
            raise ValueError(
                f"dataset.{key}: the column {name} of {self._where} holds {told_type(self._kinds[name])}; it "
                f"must hold {what}"
            )
        self._told.append(f"{key} from {name}")
        return name

    def _first(self, key: str, fits: Any) -> str | None:
        """The first column with one of the names of a key, and of its type."""
        for wanted in _NAMES[key]:
            for name, kind in self._kinds.items():
                if name.rpartition(".")[2] == wanted and fits(kind) and (key != "id" or name == wanted):
                    self._told.append(f"{key} from {name} (found by its name)")
                    return name
        return None

    def _there(self) -> str:
        shown = [f"{name} ({kind})" for name, kind in list(self._kinds.items())[:_MOST_TOLD]]
        more = len(self._kinds) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def _image(self) -> str:
        what = "encoded images: bytes, or a struct of bytes and path"
        named = self._named("image", is_encoded, what)
        if named and named not in self._schema.names:
            raise ValueError(
                f"dataset.image: the column {named} of {self._where} lies inside another one, where images "
                "are not read; write a column of its own"
            )
        if named:
            return named
        found = [field.name for field in self._schema if is_encoded(field.type)]
        declared = [name for name in found if of_feature(self._features.get(name)) == "Image"]
        found = declared or found
        if len(found) > 1:
            called = [name for name in ("image", "img") if name in found]
            if not called:
                raise ValueError(
                    f"dataset.image: {self._where} has the columns {', '.join(found)}, which may all hold "
                    "images; name one"
                )
            found = called
        if not found:
            raise ValueError(f"dataset.image: {self._where} has no column of {what}; it has {self._there()}")
        self._told.append(f"image from {found[0]} (found by its type)")
        return found[0]

    def _labels(self) -> tuple[str | None, str | None]:
        """The column of one label, or of lists of labels."""
        one = self._named("label", is_name, "whole numbers or texts (dataset.labels is for lists)")
        several = self._named("labels", are_names, "lists of whole numbers or texts")
        if one or several:
            return one, several
        one, several = self._first("label", is_name), self._first("labels", are_names)
        if one and several:
            raise ValueError(
                f"dataset.label: {self._where} has the columns {one} and {several}; name one, in "
                "dataset.label or dataset.labels"
            )
        if one is None and several is None:
            declared = [name for name in self._features if of_feature(self._features[name]) == "ClassLabel"]
            if len(declared) == 1:
                self._told.append(f"label from {declared[0]} (found by its type)")
                return declared[0], None
            more = f"; {' and '.join(declared)} may be, named in dataset.label" if declared else self._unfit()
            self._told.append(f"no column of labels{more}")
        return one, several

    def _unfit(self) -> str:
        """Which column is called like one of labels and holds something else, in words."""
        called = {*_NAMES["label"], *_NAMES["labels"]}
        name = next((name for name in self._kinds if name.rpartition(".")[2] in called), None)
        return f"; {name} holds {told_type(self._kinds[name])}, not whole numbers or texts" if name else ""

    def _boxes(self) -> tuple[str, ...]:
        named = self._named("boxes", are_boxes, "lists of boxes, each a list of four numbers")
        if named:
            return (named,)
        if all(is_number(self._kinds.get(name)) for name in BOX_COLUMNS):
            self._told.append(f"boxes from {', '.join(BOX_COLUMNS)}")
            return BOX_COLUMNS
        found = self._first("boxes", are_boxes)
        if found is None:
            return ()
        if self._keys.box_format is None:
            self._told[-1] = (
                f"boxes in the column {found} left out, since dataset.box_format does not say what they are"
            )
            return ()
        return (found,)

    def _box_labels(self, label: str | None, labels: str | None, boxes: tuple[str, ...]) -> str | None:
        """The column of the classes of the boxes: named by the job, or lying beside the boxes."""
        what = "whole numbers or texts, one for each box"
        named = self._named("box_labels", lambda kind: is_name(kind) or are_names(kind), what)
        if named and not boxes:
            raise ValueError(
                f"dataset.box_labels: no boxes of {self._where} are read; name their column in "
                "dataset.boxes, and set dataset.box_format"
            )
        outer = boxes[0].rpartition(".")[0] if len(boxes) == 1 else ""
        if named or outer in {"", "json"}:  # what lies beside all other columns may be of the image
            return named
        beside = [f"{outer}.{each}" for each in _OF_BOXES]
        there = [name for name in beside if name in self._kinds and are_names(self._kinds[name])]
        own = labels if labels and labels.rpartition(".")[0] == outer else None
        found = own or next(iter(there), None)
        if found is None:
            return None
        if label or labels not in {None, found}:
            self._told.append(
                f"boxes without classes, since dataset.box_labels does not say that {found} has the classes "
                f"of {label or labels}"
            )
            return None
        self._told = [each for each in self._told if not each.startswith("no column of labels")]
        self._told.append(f"classes of boxes from {found} (beside the boxes)")
        return found

    def _check_alike(self, names: tuple[str, ...], label: str | None, box_labels: str | None) -> None:
        """Raise ValueError if the classes of the boxes are declared otherwise than those of the images."""
        if box_labels and classes_of(self._features, box_labels) != names:
            raise ValueError(
                f"dataset.box_labels: {self._where} declares other classes for {box_labels} than for "
                f"{label}; write both with the same ones, or leave the key out"
            )


def _flat(columns: Iterable[tuple[str, pa.DataType]]) -> Iterable[tuple[str, pa.DataType]]:
    """Yield columns and those inside them. What is inside a list of structs is a list."""
    for name, kind in columns:
        yield name, kind
        listed = types.is_list(kind) or types.is_large_list(kind)
        inner = kind.value_type if listed else kind
        if types.is_struct(inner) and not is_encoded(inner):
            fields = [inner.field(i) for i in range(inner.num_fields)]
            yield from _flat((f"{name}.{f.name}", pa.list_(f.type) if listed else f.type) for f in fields)
