"""Outcomes as bytes, for the files of a run: every field of the dataclasses, arrays without pickle."""

from __future__ import annotations

import io
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from tasks.findings.decision import Outcome

_NOTHING = "none"


def packed(outcome: Outcome) -> bytes:
    """Return an outcome as the bytes of a NumPy archive."""
    arrays: dict[str, Any] = {}
    _put(outcome, "outcome", arrays)
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)
    return held.getvalue()


def unpacked(stored: bytes) -> Outcome:
    """Return the outcome that :func:`packed` stored."""
    with np.load(io.BytesIO(stored), allow_pickle=False) as archive:
        return _made(Outcome, "outcome", {name: archive[name] for name in archive.files})


def _put(value: Any, path: str, arrays: dict[str, Any]) -> None:
    """Put a value and all that it holds into ``arrays``, by path."""
    if value is None:
        arrays[f"{path}/{_NOTHING}"] = np.array(True)
    elif is_dataclass(value):
        for each in fields(value):
            _put(getattr(value, each.name), f"{path}/{each.name}", arrays)
    elif isinstance(value, tuple):
        arrays[f"{path}/count"] = np.array(len(value))
        for number, item in enumerate(value):
            _put(item, f"{path}/{number}", arrays)
    elif isinstance(value, Tensor):
        arrays[path] = value.cpu().numpy()
    else:
        arrays[path] = np.array(value.value if isinstance(value, Enum) else value)


def _made(kind: Any, path: str, arrays: dict[str, Any]) -> Any:
    """Make a value of a type from what :func:`_put` stored at a path."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in {Union, types.UnionType}:
        if f"{path}/{_NOTHING}" in arrays:
            return None
        return _made(next(each for each in inner if each is not type(None)), path, arrays)
    if isinstance(kind, type) and is_dataclass(kind):
        types_of = get_type_hints(kind)
        return kind(
            **{each.name: _made(types_of[each.name], f"{path}/{each.name}", arrays) for each in fields(kind)}
        )
    if origin is tuple:
        return tuple(_made(inner[0], f"{path}/{i}", arrays) for i in range(int(arrays[f"{path}/count"])))
    value = arrays[path]
    if kind is Tensor:
        return torch.from_numpy(value)
    return value if origin is np.ndarray or kind is np.ndarray else kind(value.item())
