"""Find weights of a network in the rest of a file, under whatever names they have there."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

DEPTH = 8  # how many tables of a file may lie in one another
# What an optimizer keeps has the parameters' shapes and is no weights: names of its table, and torch's names.
_OF_OPTIMIZER = re.compile(
    r"[Oo]ptim(i[sz]er)?s?(?![a-z])|(max_)?exp_(avg|inf)|momentum_buffer|(square|grad)_avg|acc_delta"
)


def of_optimizer(name: str) -> bool:
    """Whether a part of a name, between dots, says that a value is an optimizer's."""
    return any(_OF_OPTIMIZER.match(part) for part in name.split("."))


def weights_in_rest(content: Any, taken: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> list[str]:
    """What the names of other values of the parameters begin with, such as averages under names of their own.

    Such a set is a table, a list or a group of names with a common beginning that has a tensor of the shape
    of every parameter, in any order; buffers may be missing, and there may be more tensors.

    Parameters
    ----------
    content
        What the file holds.
    taken
        Tensors of the file, by their full names, that are not looked at: those of sets of weights under the
        network's names.
    parameters
        The values of the parameters, as the file has them.
    """
    wanted = Counter(value.shape for value in parameters)
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for name, value in _tensors(content):
        if name not in taken and value.shape in wanted and not of_optimizer(name):
            for beginning in ["", *(name[: mark.end()] for mark in re.finditer(r"[^0-9A-Za-z]", name))]:
                groups[beginning].append(value)
    whole = [start for start, found in groups.items() if wanted and wanted <= _shapes(found)]
    smallest = [
        start
        for start in whole
        if not any(other != start and other.startswith(start) for other in whole)
        and any(not any(equal(value, other) for other in taken.values()) for value in groups[start])
    ]
    return [re.sub(r"[^0-9A-Za-z]+$", "", start) for start in smallest]


def _shapes(values: list[Tensor]) -> Counter[torch.Size]:
    return Counter(value.shape for value in values)


def _tensors(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in tables and lists with their full names, without the state of an optimizer."""
    if isinstance(content, Tensor):
        yield name, content
    if depth > DEPTH or not isinstance(content, Mapping | list | tuple):
        return
    optimizer = isinstance(content, Mapping) and "param_groups" in content
    if optimizer and name:
        return
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if not (optimizer and key == "state"):  # it lies beside the weights, in no table of its own
            yield from _tensors(value, f"{name}.{key}" if name else str(key), depth + 1)


def equal(one: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and the same values, whatever their types."""
    if one.shape != other.shape or one.layout != other.layout or one.is_meta or other.is_meta:
        return False
    if one.is_quantized or other.is_quantized or one.dtype != other.dtype:
        one, other = (value.dequantize() if value.is_quantized else value for value in (one, other))
        one, other = one.double(), other.double()
    return torch.equal(one, other)
