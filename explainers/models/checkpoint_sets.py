"""Find the sets of weights in a file that fit a network, however they are wrapped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from explainers.models.checkpoint_order import by_order, same_kinds
from explainers.models.checkpoint_rest import DEPTH, equal, of_optimizer, weights_in_rest
from plugins.reasons import first_line

# Parts of names that wrappers of modules add: data-parallel training, torch.compile, FSDP, Lightning.
_WRAPPERS = frozenset(
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"]
)
_FLOATS = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64])
_RENAME = (
    "its tensors have the network's shapes in the network's order, but some could be confused; if both are "
    "the same network, save them under its names: dict(zip(network.state_dict(), weights.values()))"
)
_COUNTER = "num_batches_tracked"  # of batch normalisation; files of 2018 and before do not have it


class MisfitError(ValueError):
    """No set of weights in the file fits the network."""


@dataclass(frozen=True)
class _Leaf:
    """A value in a file: the keys of the tables around it, with a dot at the end, and its own name."""

    tables: str
    name: str
    value: Any

    @property
    def full(self) -> str:
        return self.tables + self.name


class Checkpoint:
    """A file of weights, compared with a network.

    Names are compared without the parts that wrappers add. A place is the beginning that the names of a set
    have in the file, in this form.
    """

    def __init__(self, path: Path, content: Any, network: nn.Module, training_only: tuple[str, ...]) -> None:
        self.path, self.training_only = path, training_only
        self.state = network.state_dict()
        self.own = {name: value for name, value in self.state.items() if isinstance(value, Tensor)}
        self.wrappers = _WRAPPERS
        self.plain = {self.bare(name): name for name in self.own}
        if len(self.plain) < len(self.own):  # they are parts of the network's own names
            self.wrappers, self.plain = frozenset(), {name: name for name in self.own}
        named = list(network.named_parameters())
        trained = [name for name, value in named if value.requires_grad]  # averages may have these alone
        self.named = [self.bare(name) for name in trained or dict(named)]
        self.content, self.leaves = content, list(_leaves(content))
        self._check_content()
        self.places: dict[str, dict[str, _Leaf]] = {}
        for leaf in self.leaves:
            for place, name in self._places_of(leaf):
                known = self.places.setdefault(place, {}).setdefault(name, leaf)
                if known is not leaf and not equal(known.value, leaf.value):
                    raise ValueError(
                        f"model.weights: {path} holds {known.full} and {leaf.full}, which differ; save "
                        "one of them in a file of its own"
                    )

    def bare(self, name: str) -> str:
        """A name without the parts that wrappers add."""
        return ".".join(part for part in name.split(".") if part not in self.wrappers)

    def _check_content(self) -> None:
        content, tensors = self.content, [leaf for leaf in self.leaves if isinstance(leaf.value, Tensor)]
        if not all(of_optimizer(leaf.tables) for leaf in tensors):
            return
        what = "holds no state dict (a mapping of names to tensors)"
        if tensors or (isinstance(content, Mapping) and {"state", "param_groups"} <= set(content)):
            what = "holds the state of an optimizer and no weights; give the file of the network's weights"
        elif isinstance(content, Mapping) and content and not any(isinstance(key, str) for key in content):
            what += f": its keys are no names, such as {next(iter(content))!r}; save network.state_dict()"
        raise ValueError(f"model.weights: {self.path} {what}")

    def _places_of(self, leaf: _Leaf) -> Iterator[tuple[str, str]]:
        """Every place at which the leaf could be a tensor of the network, and its name there."""
        if not isinstance(leaf.value, Tensor):
            return
        parts = self.bare(leaf.full).split(".")
        for start in range(len(parts)):
            name = _current_name(".".join(parts[start:]), self.plain)
            if name in self.plain and not of_optimizer(".".join(parts[:start])):
                yield "".join(f"{part}." for part in parts[:start]), name

    def chosen(self, key: str | None) -> tuple[str, list[str]]:
        """The place of the set that is taken, and those of the other sets that fit."""
        wanted = [place for place in self.fitting if key is None or self._has_key(place, key)]
        if not wanted:
            if key is not None and self.fitting:
                there = ", ".join(repr(self.label(place)) for place in self.fitting)
                raise ValueError(f"model.weights_key: {self.path} has no {key!r} that fits; it has {there}")
            nearest = self._nearest(key)
            alike = [place for place in self.places if len(self.places[place]) == len(self.places[nearest])]
            if key is None and not all(self._same(nearest, place) for place in alike):
                raise MisfitError(self.misfit(key))  # by the network's rules for old files each might fit
            return nearest, []
        first = wanted[0]
        differing = [place for place in wanted[1:] if not self._same(first, place)]
        unread = [] if key is not None else self._in_rest(first)
        if differing or unread:
            there = ", ".join(repr(name) for name in [*map(self.label, [first, *differing]), *unread])
            names = ", ".join(map(repr, unread))
            saved = f" ({names} can be taken only after it was saved with all of the network's names)"
            raise ValueError(
                f"model.weights_key: {self.path} holds several sets of weights that differ, {there}; "
                f"name the one to take{saved if unread else ''}"
            )
        return first, [place for place in self.fitting if place != first]

    @cached_property
    def fitting(self) -> list[str]:
        """The places of the sets that fit."""
        return [place for place in self.places if self._fits(place)]

    def _fits(self, place: str) -> bool:
        found = self.places[place]
        complete = all(name in found or name.endswith(_COUNTER) for name in self.plain)
        return complete and all(self._has_shape(name, leaf.value) for name, leaf in found.items())

    def _has_shape(self, name: str, value: Tensor) -> bool:
        own = self.own[self.plain[name]]
        if is_lazy(own):  # it gets the shape that it is loaded with
            return True
        return value.shape == own.shape or (value.shape == (1,) and own.ndim == 0)  # torch takes both

    def _nearest(self, key: str | None) -> str:
        """The place at which most names are found, to be loaded by the network's own rules for old files."""
        near = [place for place in self.places if key is None or self._has_key(place, key)]
        if not near:
            raise MisfitError(self.misfit(key))
        return max(near, key=lambda place: (len(self.places[place]), -len(place)))

    def _has_key(self, place: str, key: str) -> bool:
        return f"{self.label(place)}.".startswith(f"{key}.") if key else self.label(place) == ""

    def _same(self, one: str, other: str) -> bool:
        first, second = self.places[one], self.places[other]
        return all(equal(leaf.value, second[name].value) for name, leaf in first.items() if name in second)

    def _in_rest(self, place: str) -> list[str]:
        """Other values of the parameters under other names, or without buffers, as averages may be kept."""
        unknown = self._unknown(place).values()  # loading refuses them by name
        taken = [leaf for other in self.fitting for leaf in self.places[other].values()]
        parameters = [self.places[place][name].value for name in self.named]
        return weights_in_rest(
            self.content, {leaf.full: leaf.value for leaf in [*taken, *unknown]}, parameters
        )

    def label(self, place: str) -> str:
        """A place as the file writes it, without the dot at the end."""
        for name, leaf in self.places[place].items():
            own = self.plain[name]
            for end in (own, name):
                if leaf.full == end or leaf.full.endswith(f".{end}"):
                    return leaf.full.removesuffix(end).removesuffix(".")
        return place.removesuffix(".")

    def values(self, place: str) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The state dict at a place, with what the network does not know, and the types that were cast."""
        state: dict[str, Any] = {}
        cast: Counter[str] = Counter()
        for name, leaf in self.places[place].items():
            own = self.own[self.plain[name]]
            value = self._checked(leaf, own)
            counts = leaf.value.is_floating_point() or leaf.value.is_quantized
            if counts and leaf.value.dtype != own.dtype:
                cast[_type(leaf.value)] += 1
            state[self.plain[name]] = value
        state |= {name: leaf.value for name, leaf in self._unknown(place).items()}
        if place not in self.fitting:  # the network may have rules for names of older versions
            return state, dict(cast)
        counters = {name: value for name, value in self.own.items() if name.endswith(_COUNTER)}
        versions = _StateDict(counters | state)
        versions._metadata = getattr(self.state, "_metadata", {})
        return versions, dict(cast)

    def _unknown(self, place: str) -> dict[str, _Leaf]:
        """Tensors among those of a set that the network does not know, by the rest of their names."""
        members = self.places[place].values()
        tables = {leaf.tables for leaf in members}
        ids = {id(leaf) for other in self.fitting for leaf in self.places[other].values()}
        ids |= {id(leaf) for leaf in members}
        rests = {
            self.bare(leaf.full).removeprefix(place): leaf
            for leaf in self.leaves
            if leaf.tables in tables and id(leaf) not in ids and isinstance(leaf.value, Tensor)
            if self.bare(leaf.full).startswith(place) and leaf.name != "n_averaged"  # of averaged weights
        }
        return {name: leaf for name, leaf in rests.items() if not name.startswith(self.training_only)}

    def _checked(self, leaf: _Leaf, own: Tensor) -> Tensor:
        """A tensor of the file as the network's own type."""
        value: Tensor = leaf.value
        if value.is_quantized:
            value = value.dequantize()
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(f"model.weights: {leaf.full} in {self.path} is no dense tensor with values")
        if leaf.name.endswith(_COUNTER):  # only training reads it; averages of it are no whole numbers
            return value.nan_to_num().to(own.dtype)
        if (value.dtype in _FLOATS) != (own.dtype in _FLOATS) or value.is_complex():
            raise ValueError(
                f"model.weights: {leaf.full} in {self.path} is {_type(value)}, and {_type(own)} in the "
                "network; give weights that are not compressed"
            )
        value = value.to(own.dtype)
        # Some networks keep infinities on purpose, in masks of attention.
        if is_lazy(own):
            own = torch.zeros_like(value)
        if value.shape == own.shape and bool((~value.isfinite() & (value != own.to(value.device))).any()):
            raise ValueError(f"model.weights: {leaf.full} in {self.path} has values that are not finite")
        return value

    def in_order(self) -> dict[str, Tensor]:
        """The file's tensors under the network's names, if their order alone says which is which.

        Empty if it does not; see :func:`explainers.models.checkpoint_order.by_order`. safetensors files are
        sorted by name, so that they have no order of their own.
        """
        found, own = self._both_in_order()
        named = {} if self.path.suffix == ".safetensors" else by_order(found, own)
        return {self.plain[name]: found[other] for name, other in named.items()}

    def _both_in_order(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of the file and of the network in their order, without counters; nothing if unknown."""
        if any(map(is_lazy, self.own.values())):
            return {}, {}
        there = {self.bare(leaf.full): leaf.value for leaf in self.leaves if isinstance(leaf.value, Tensor)}
        here = {name: self.own[full] for name, full in self.plain.items()}
        found, own = (
            {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
            for state in (there, here)
        )
        return found, own

    def misfit(self, key: str | None, error: Exception | None = None) -> str:
        """Why no set fits, and the likely cause; ``error`` is what the network said."""
        start = f"model.weights: {self.path} does not fit the network: "
        if key is not None and not any(self._has_key(place, key) for place in self.places):
            return f"model.weights_key: {self.path} has no weights of the network at {key!r}"
        if not self.places:
            there = next(leaf.full for leaf in self.leaves if isinstance(leaf.value, Tensor))
            told = f"{start}no name is known, such as {there}, not {next(iter(self.own))}; "
            return told + (_RENAME if same_kinds(*self._both_in_order()) else "check model.name")
        place = self._nearest(key)
        label, found = self.label(place), self.places[place]
        where = f"its names begin with '{label}.'; without that, " if label else ""
        for name, leaf in found.items():
            if not self._has_shape(name, leaf.value):
                shape, wanted = tuple(leaf.value.shape), tuple(self.own[self.plain[name]].shape)
                classes = shape[1:] == wanted[1:]
                advice = f"; if it has {shape[0]} classes, set model.num_classes" if classes else ""
                return f"{start}{where}{name} is {shape} in the file and {wanted} in the network{advice}"
        missing = [name for name in self.plain if name not in found and not name.endswith(_COUNTER)]
        parts = [
            f"{len(names)} {what}, such as {names[0]}"
            for names, what in (
                (missing, "tensors are missing"),
                (list(self._unknown(place)), "tensors are unknown to the network"),
            )
            if names
        ]
        advice = "compare the names with those of the network" if label else "check model.name"
        if not parts and error is not None:
            parts = [first_line(error)]
        return f"{start}{where}{'; '.join(parts)}; {advice}"


class _StateDict(dict[str, Tensor]):
    """A state dict with the versions of the modules, by which they read old files."""

    _metadata: Any


def _leaves(content: Any, tables: str = "", depth: int = 0) -> Iterator[_Leaf]:
    """What the tables of a file hold."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from [] if isinstance(value, Mapping) else [_Leaf(tables, name, value)]
            yield from _leaves(value, f"{tables}{name}.", depth + 1)


def _current_name(name: str, expected: Mapping[str, Any]) -> str:
    """The name that the network has for a tensor of a file."""
    # torchvision's published DenseNet files say norm.1 where the network says norm1.
    renamed = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name)
    return renamed if name not in expected and renamed in expected else name


def check_finite(where: str, network: nn.Module) -> None:
    """Check the parameters of a network that a library has loaded.

    Raises
    ------
    ValueError
        In one line that names ``where`` and the first parameter that is not finite.
    """
    for name, value in network.named_parameters():
        if not bool(value.isfinite().all()):
            raise ValueError(f"model.weights: {name} in {where} has values that are not finite")


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
