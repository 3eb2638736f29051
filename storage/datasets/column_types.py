"""What the columns of a table may hold, by their types and by what Hugging Face's datasets say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import types


def is_encoded(kind: pa.DataType) -> bool:
    """Whether a column may hold encoded images: bytes, or Hugging Face's struct of bytes and a path."""
    if types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def told_type(kind: pa.DataType) -> str:
    """A type in words."""
    return "no values, or values of several types" if types.is_null(kind) else str(kind)


def is_name(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or types.is_integer(kind)


def is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (types.is_integer(kind) or types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def are_names(kind: pa.DataType) -> bool:
    return _is_list(kind) and is_name(kind.value_type)


def are_boxes(kind: pa.DataType) -> bool:
    """Whether a type is a list of four numbers, or a list of such lists."""
    if not _is_list(kind):
        return False
    inner = kind.value_type
    return is_number(inner) or (_is_list(inner) and is_number(inner.value_type))


# What Hugging Face's datasets write into the metadata of a table


def features_of(schema: pa.Schema) -> Mapping[str, Any]:
    """The features of the columns; empty if the table has none that can be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def of_feature(feature: Any) -> Any:
    """The name of a feature's class."""
    return feature.get("_type") if isinstance(feature, dict) else None


def classes_of(features: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The names of the classes of a column that is a ClassLabel, or lists of them."""
    feature: Any = features
    for part in name.split("."):
        feature = _inside(feature).get(part, {})
    feature = _inside(feature)
    names = feature.get("names") if of_feature(feature) == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _inside(feature: Any) -> dict[str, Any]:
    """A feature, or that of the elements of a list."""
    while of_feature(feature) in {"List", "LargeList", "Sequence"} and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and feature:
        feature = feature[0]
    return feature if isinstance(feature, dict) else {}
