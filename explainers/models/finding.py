"""Find the target layer of a network of any architecture, by what its layers do.

It is the last place, in order of execution, through which everything passes that the logits know of the
input, that has rows and columns, whose every cell reaches the logits, whose cells follow the input, and at
which the network can be cut.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from explainers.models.architectures import architecture_of
from explainers.models.candidates import Candidate, candidates, noted
from explainers.models.compute import full_precision, tf32
from explainers.models.cutting import Cut, cut
from explainers.models.grid_checks import (
    changes,
    follows,
    places_on,
    random_sum,
    reach,
    reached,
)
from explainers.models.layout import Layout
from explainers.models.probes_at_load.rows import TOLERANCE
from explainers.numerics.differences import difference
from plugins.reasons import first_line

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier

_WINDOW = 12  # candidates that are looked at in the same passes
_NAMED = 5  # refused places that a message names, at most
_DRAWN = 0.02  # standard deviation of random numbers in place of weights that are all zero
_SILENT = "no cell reaches the logits"


@dataclass(frozen=True)
class Place:
    """A place in a network, and whether it can be the target layer.

    Attributes
    ----------
    layer
        Its name.
    values
        (B, \\*shape), the activations there of two seeded inputs.
    layout
        How they are read; None if they are on no grid.
    refused
        Why it cannot be the target layer, in a few words; None if it can.
    reach
        Which cells reach the logits, in a few words.
    follows
        How its cells follow a patch that is moved over the input, in a few words.
    parts
        The network, cut there; None if it was not cut.
    earlier
        For each other grid on which there are earlier places, the last of them, with its grid.
    """

    layer: str
    values: Tensor
    layout: Layout | None = None
    refused: str | None = None
    reach: str = ""
    follows: str = ""
    parts: Cut | None = None
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetLayer:
    """The target layer of a network.

    Attributes
    ----------
    layer
        Its name.
    parts
        The network, cut there, if it was cut to find the layer.
    seen
        The answers of probes at load that the search has asked already, by the names of the probes.
    choice
        How it was chosen, and which other places there are, in words; empty if it was named.
    """

    layer: str
    parts: Cut | None = None
    seen: Mapping[str, str] = field(default_factory=dict)
    choice: str = ""


def resolve_layer(classifier: Classifier, layer: str | None) -> TargetLayer:
    """Say which layer is the target: the given one, or that of a published architecture, or the one found.

    Raises
    ------
    ValueError
        If the layer does not exist (with close matches), or if none is given and none can be found.
    """
    if layer is None:
        known = architecture_of(classifier.network)
        if known:
            network = getattr(classifier.network, "visual", classifier.network)  # the tower of a CLIP
            return TargetLayer(known.layer(classifier.network), choice=f"known for {type(network).__name__}")
        found = find_layer(classifier)
        seen = {} if found.parts is None else {"cells": found.reach, "patch": found.follows}
        others = ", ".join(found.earlier)
        choice = f"found; earlier, on other grids and not tried: {others}" if others else "found"
        return TargetLayer(found.layer, found.parts, seen, choice)
    name, colon, side = layer.partition(":")
    names = [module_name for module_name, _ in classifier.network.named_modules() if module_name]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[-5:]
        raise ValueError(f"model.layer: the network has no layer {name!r}; close are {', '.join(close)}")
    if colon and side != "input":
        raise ValueError(f"model.layer: only ':input' may follow {name!r}, not ':{side}'")
    return TargetLayer(layer)


def find_layer(classifier: Classifier) -> Place:
    """Find the target layer.

    Parameters
    ----------
    classifier
        A classifier whose network runs, and which need not be cut yet.

    Raises
    ------
    ValueError
        In one line, if the network has no such place.
    """
    found, refused = _last_sound(classifier)
    zeros = [each for each in classifier.network.parameters() if not bool(each.any())]
    if found is None and zeros and any(place.refused == _SILENT for place in refused):
        # Behind weights that are all zero, as of a head that is not trained yet, there is no gradient.
        with _drawn(zeros):
            found, refused = _last_sound(classifier)
        found = found and replace(found, parts=None)  # a head may have recorded what the drawn numbers give
    if found is not None:
        return found
    seen = "; ".join(f"{place.layer} ({place.refused})" for place in refused[:_NAMED])
    raise ValueError(
        f"model.layer: no layer of {type(classifier.network).__qualname__} can be the target layer: "
        f"{seen or 'no tensor on a grid lies on every path to the logits'}; name one, or choose explainers "
        "that need no layer"
    )


def _last_sound(classifier: Classifier) -> tuple[Place | None, list[Place]]:
    """The place to take, if there is one, and those on a grid behind it that were refused."""
    found, refused = None, []
    for place in places(classifier):
        if found is not None and (place.refused or not _shows_the_same(classifier.network, found, place)):
            break
        if place.refused is None:
            found = place  # the first of several places that show the same
            name, _, side = place.layer.partition(":")
            if not side and next(classifier.network.get_submodule(name).parameters(), None) is not None:
                break  # a module with weights shows what no earlier place does
        elif place.layout is not None:
            refused.append(place)
    return found, refused


@contextmanager
def _drawn(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block, parameters hold seeded random numbers."""
    kept = [each.data for each in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        for each in parameters:
            each.data = (_DRAWN * torch.randn(each.shape, generator=generator)).to(each)
        yield
    finally:
        for each, data in zip(parameters, kept, strict=True):
            each.data = data


def _shows_the_same(network: nn.Module, found: Place, earlier: Place) -> bool:
    """Whether an earlier place has the same values, or a module without weights only enlarged its grid."""
    if _same_values(earlier.values, found.values):
        return True
    name, _, side = found.layer.partition(":")
    if side or found.layout is None or earlier.layout is None or earlier.values.ndim != found.values.ndim:
        return False
    weights = next(network.get_submodule(name).parameters(), None)
    if weights is not None or earlier.layout.channels != found.layout.channels:
        return False
    return all(few < many for few, many in zip(earlier.layout.grid, found.layout.grid, strict=True))


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in the same or, as views of one memory, in other axes."""
    if one.shape == other.shape:
        return torch.equal(one, other)
    return one.numel() == other.numel() and one.data_ptr() == other.data_ptr()


def places(classifier: Classifier) -> Iterator[Place]:
    """Judge the places through which everything passes, from the logits backwards.

    Parameters
    ----------
    classifier
        A classifier whose network runs, and which need not be cut yet.

    Yields
    ------
    Place
        One for each tensor, judged only when it is asked for.
    """
    with torch.inference_mode(False), full_precision(), tf32(False):
        with torch.enable_grad():
            inputs = classifier.probed.clone().requires_grad_()
            logits, listed = candidates(classifier.network, lambda: classifier.logits(inputs), inputs)
        on_grids = []
        for candidate in reversed(listed):
            layout, why = _layout(classifier, candidate)
            if layout is None:
                yield Place(candidate.layer, candidate.values, None, why)
            else:
                on_grids.append((candidate, layout))
        for start in range(0, len(on_grids), _WINDOW):
            judged = _judged(classifier, logits, on_grids[start : start + _WINDOW])
            for position, place in enumerate(judged, start):
                yield replace(place, earlier=_on_other_grids(on_grids[position:]))


def _on_other_grids(places: Sequence[tuple[Candidate, Layout]]) -> tuple[str, ...]:
    """The first place for each grid but that of the very first place, with its grid."""
    found: dict[tuple[int, int], str] = {}
    for candidate, layout in places:
        found.setdefault(layout.grid, f"{candidate.layer} ({layout.grid[0]}x{layout.grid[1]})")
    return tuple(found.values())[1:]


def _layout(classifier: Classifier, candidate: Candidate) -> tuple[Layout | None, str]:
    shape = tuple(candidate.values.shape)
    if len(shape) < 3 or shape[0] != len(classifier.probed):
        return None, "no grid"
    try:
        layout = classifier.layout_for(shape[1:])
    except ValueError:
        return None, "no grid"
    if any(cells < 2 for cells, pixels in zip(layout.grid, classifier.input_size, strict=True) if pixels > 1):
        return None, f"a grid of {layout.grid[0]}x{layout.grid[1]} cells"
    return layout, ""


def _judged(
    classifier: Classifier, logits: Tensor, window: Sequence[tuple[Candidate, Layout]]
) -> Iterator[Place]:
    """Judge candidates on grids: gradients and patches are asked for all of them in the same passes."""
    with torch.enable_grad():
        edges = [candidate.edge for candidate, _ in window]
        gradients = torch.autograd.grad(random_sum(logits), edges, retain_graph=True)
    with_gradient = [
        torch.zeros(layout.grid, dtype=torch.bool)
        if gradient is None
        else reached(layout.spatial(gradient)).cpu()
        for (_, layout), gradient in zip(window, gradients, strict=True)
    ]
    alive = [each for each, cells in zip(window, with_gradient, strict=True) if bool(cells.any())]
    followed: dict[str, tuple[bool, str]] = {}
    for (candidate, layout), cells in zip(window, with_gradient, strict=True):
        place = Place(candidate.layer, candidate.values, layout)
        if not bool(cells.any()):
            yield replace(place, refused=_SILENT)
            continue
        if _holds_the_classes(logits, candidate, layout):
            yield replace(place, refused="its channels are the maps of the classes themselves")
            continue
        if candidate.layer not in followed:
            same = [each for each in alive if places_on(each[1].grid) == places_on(layout.grid)]
            followed |= _follow(classifier, same)
        sound, told = followed[candidate.layer]
        if not sound:
            yield replace(place, refused=f"its cells do not follow the input ({told})")
            continue
        yield _first_cut(classifier, replace(place, follows=told), cells, candidate.inside)


def _holds_the_classes(logits: Tensor, candidate: Candidate, layout: Layout) -> bool:
    """Whether a place has one channel for each class, and each logit reads one channel alone."""
    if layout.channels != logits.shape[1]:
        return False
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), [candidate.edge], retain_graph=True)
    return int((layout.spatial(gradient) != 0).any(3).any(2).any(0).sum()) <= 1


def _follow(
    classifier: Classifier, window: Sequence[tuple[Candidate, Layout]]
) -> dict[str, tuple[bool, str]]:
    """For each layer whether its cells follow a bright patch; all have the same number of places."""
    names = [candidate.layer for candidate, _ in window]
    places = places_on(window[0][1].grid)

    def maps(shown: Tensor) -> list[Tensor]:
        with noted(classifier.network, names) as values:
            classifier.logits(shown)
        return [layout.spatial(values[candidate.layer])[0] for candidate, layout in window]

    with torch.no_grad():
        changed = changes(maps, classifier.input_shape, places, classifier.device)
    return {
        candidate.layer: follows(each, places, candidate.values.ndim == 4)
        for each, (candidate, _) in zip(changed, window, strict=True)
    }


def _first_cut(classifier: Classifier, place: Place, cells: Tensor, inside: Sequence[str]) -> Place:
    """Cut at a place, or at a module inside of it that returns the same tensor."""
    first = _cut(classifier, place, cells)
    if first.parts is not None:
        return first
    others = (_cut(classifier, replace(place, layer=layer), cells) for layer in inside)
    return next((each for each in others if each.refused is None), first)


@torch.no_grad()
def _cut(classifier: Classifier, place: Place, cells: Tensor) -> Place:
    """Cut the network at a place, and ask whether its cells reach the logits behind the cut."""
    assert place.layout is not None
    layout, inputs = place.layout, classifier.normalised(classifier.probed)
    try:
        parts = cut(classifier.network, place.layer, inputs)
    except ValueError as error:
        return replace(place, refused=first_line(error).removeprefix("model.layer: "))
    activations = parts.backbone(inputs)
    if activations.shape != place.values.shape or not difference(activations, place.values) <= TOLERANCE:
        return replace(place, refused="the cut network has other activations there")
    as_logits, head = classifier.outputs.logits, parts.head
    whole, told = reach(cells, layout, activations[:1], lambda given: as_logits(head(given)))
    return replace(place, reach=told, refused=None if whole else told, parts=parts)
