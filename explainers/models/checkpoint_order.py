"""Match the tensors of a file with those of a network by their order, where the names are others.

Libraries that build the same network name its modules differently. If all tensors of both have the same kinds
(weight, bias, running_mean, ...) and shapes in the same order, the order says which is which, except where
modules of one parent could change places without a difference: the queries and keys of an attention, for
example, or the two projections of a gated network, between which the third one may stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations, groupby
from typing import Any

from torch import Size, Tensor

_NUMBER = re.compile(r"\d+")


def same_kinds(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors, by name, have the same kinds and shapes in the same order."""
    return bool(found) and _kinds(found) == _kinds(own)


def _kinds(state: Mapping[str, Tensor]) -> list[tuple[str, Size]]:
    return [(name.rpartition(".")[2], value.shape) for name, value in state.items()]


def by_order(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The name in a file for each name of a network, by their order.

    Parameters
    ----------
    found, own
        The tensors of the file and those of the network, by name, without counters of batches.

    Returns
    -------
    dict
        Empty if the tensors are not of the same kinds and shapes in the same order, if a name of the network
        would be given to another tensor, or if modules of one parent could be confused. They could not if
        their names differ in nothing but numbers that grow, on both sides.
    """
    there, here, kinds = list(found), list(own), _kinds(found)
    if not same_kinds(found, own):
        return {}
    if any(name in own and name != given for name, given in zip(there, here, strict=True)):
        return {}
    swaps = [swap for names in (there, here) for swap in _swaps(names, kinds, range(len(names)), 0)]
    if not all(_counted(names[one], names[other]) for one, other in swaps for names in (there, here)):
        return {}
    return dict(zip(here, there, strict=True))


def _swaps(
    names: Sequence[str], kinds: Sequence[Any], within: range, depth: int
) -> Iterator[tuple[int, int]]:
    """Positions of tensors that change places if modules of one parent do that have the same tensors.

    These are modules or runs of them side by side, and modules with a matrix or a kernel wherever they stand.
    Normalisations alone do not count there, since they stand where they are applied.

    Parameters
    ----------
    names, kinds
        Of all tensors.
    within, depth
        Positions of the tensors of the parent, and the number of parts of its name.
    """
    children: list[range] = []
    for _, positions in groupby(within, key=lambda each: names[each].split(".")[depth]):
        first, *rest = positions
        children.append(range(first, first + 1 + len(rest)))
        if rest or names[first].count(".") > depth:
            yield from _swaps(names, kinds, children[-1], depth + 1)
    held = [[kinds[each] for each in child] for child in children]
    for length in range(1, len(children) // 2 + 1):
        for start in range(len(children) - 2 * length + 1):
            middle = start + length
            if held[start:middle] == held[middle : middle + length]:
                there, other = (children[at : at + length] for at in (start, middle))
                yield from zip(chain(*there), chain(*other), strict=True)
    for one, another in combinations(range(len(children)), 2):
        if held[one] == held[another] and any(len(shape) > 1 for _, shape in held[one]):
            yield from zip(children[one], children[another], strict=True)


def _counted(one: str, other: str) -> bool:
    """Whether two names differ in nothing but numbers, and those of the second one are larger."""
    numbers, larger = ([int(each) for each in _NUMBER.findall(name)] for name in (one, other))
    return _NUMBER.sub("", one) == _NUMBER.sub("", other) and numbers < larger
