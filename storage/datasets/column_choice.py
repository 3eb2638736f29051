"""Which columns of a table hold the images, labels, boxes and ids of a dataset: named by the job, or found.

Columns inside others are written with dots, e.g. ``objects.bbox``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import types

from storage.datasets.boxes import BOX_COLUMNS
from storage.datasets.column_keys import ColumnKeys

_NAMES = {
    "label": ("label", "cls", "class", "target"),
    "labels": ("labels", "label"),
    "boxes": ("boxes", "bbox", "bboxes"),
    "id": ("id", "image_id", "sample_id", "__key__"),
}
_MOST_TOLD = 12  # columns that a message lists


@dataclass(frozen=True)
class Choice:
    """The columns that are read.

    Attributes
    ----------
    image, label, labels, boxes, id
        Names of columns. ``boxes`` are one column of lists, or four of numbers.
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

    @property
    def facts(self) -> list[str]:
        """The columns of everything but the image, each once."""
        named = (self.label, self.labels, *self.boxes, self.id)
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
    return _classes(_features(schema), name or "")


def is_encoded(kind: pa.DataType) -> bool:
    """Whether a column may hold encoded images: bytes, or Hugging Face's struct of bytes and a path."""
    if types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


class _Chooser:
    def __init__(self, schema: pa.Schema, keys: ColumnKeys, where: str) -> None:
        self._schema, self._keys, self._where = schema, keys, where
        self._kinds = dict(_flat((field.name, field.type) for field in schema))
        self._features = _features(schema)
        self._told: list[str] = []

    def choice(self, image: str | None, ids: str) -> Choice:
        if image is None:
            image = self._image()
        else:
            self._told.append(f"image from {image}")
        label, labels = self._labels()
        boxes = self._boxes()
        name = self._named("id", _is_name, "whole numbers or texts") or self._first("id", _is_name)
        if name is None:
            self._told.append(f"ids are {ids}")
        names = _classes(self._features, label or labels or "")
        if names:
            self._told.append(f"{len(names)} classes as the table declares them")
        return Choice(image, label, labels, boxes, name, names, ", ".join(self._told))

    def _named(self, key: str, fits: Any, what: str) -> str | None:
        """The column that a key of the job names."""
        name: str | None = getattr(self._keys, key)
        if name is None:
            return None
        if name not in self._kinds:
            raise ValueError(f"dataset.{key}: {self._where} has no column {name}; it has {self._there()}")
        if not fits(self._kinds[name]):
            raise ValueError(
                f"dataset.{key}: the column {name} of {self._where} holds {_told(self._kinds[name])}; it "
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
        declared = [name for name in found if _of_feature(self._features.get(name)) == "Image"]
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
        one = self._named("label", _is_name, "whole numbers or texts (dataset.labels is for lists)")
        several = self._named("labels", _are_names, "lists of whole numbers or texts")
        if one or several:
            return one, several
        one, several = self._first("label", _is_name), self._first("labels", _are_names)
        if one and several:
            raise ValueError(
                f"dataset.label: {self._where} has the columns {one} and {several}; name one, in "
                "dataset.label or dataset.labels"
            )
        if one is None and several is None:
            declared = [name for name in self._features if _of_feature(self._features[name]) == "ClassLabel"]
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
        return f"; {name} holds {_told(self._kinds[name])}, not whole numbers or texts" if name else ""

    def _boxes(self) -> tuple[str, ...]:
        named = self._named("boxes", _are_boxes, "lists of boxes, each a list of four numbers")
        if named:
            return (named,)
        if all(_is_number(self._kinds.get(name)) for name in BOX_COLUMNS):
            self._told.append(f"boxes from {', '.join(BOX_COLUMNS)}")
            return BOX_COLUMNS
        found = self._first("boxes", _are_boxes)
        if found is None:
            return ()
        if self._keys.box_format is None:
            self._told[-1] = (
                f"boxes in the column {found} left out, since dataset.box_format does not say what they are"
            )
            return ()
        return (found,)


def _flat(columns: Iterable[tuple[str, pa.DataType]]) -> Iterable[tuple[str, pa.DataType]]:
    """Yield columns and those inside them. What is inside a list of structs is a list."""
    for name, kind in columns:
        yield name, kind
        listed = types.is_list(kind) or types.is_large_list(kind)
        inner = kind.value_type if listed else kind
        if types.is_struct(inner) and not is_encoded(inner):
            fields = [inner.field(i) for i in range(inner.num_fields)]
            yield from _flat((f"{name}.{f.name}", pa.list_(f.type) if listed else f.type) for f in fields)


# Types


def _told(kind: pa.DataType) -> str:
    """A type in words."""
    return "no values, or values of several types" if types.is_null(kind) else str(kind)


def _is_name(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or types.is_integer(kind)


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (types.is_integer(kind) or types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _are_names(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_name(kind.value_type)


def _are_boxes(kind: pa.DataType) -> bool:
    """Whether a type is a list of four numbers, or a list of such lists."""
    if not _is_list(kind):
        return False
    inner = kind.value_type
    return _is_number(inner) or (_is_list(inner) and _is_number(inner.value_type))


# What Hugging Face's datasets write into the metadata of a table


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """The features of the columns; empty if the table has none that can be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_feature(feature: Any) -> Any:
    """The name of a feature's class."""
    return feature.get("_type") if isinstance(feature, dict) else None


def _classes(features: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The names of the classes of a column that is a ClassLabel, or lists of them."""
    feature: Any = features
    for part in name.split("."):
        feature = _inside(feature).get(part, {})
    feature = _inside(feature)
    names = feature.get("names") if _of_feature(feature) == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _inside(feature: Any) -> dict[str, Any]:
    """A feature, or that of the elements of a list."""
    while _of_feature(feature) in {"List", "LargeList", "Sequence"} and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and feature:
        feature = feature[0]
    return feature if isinstance(feature, dict) else {}
