"""Cut a network by replay: it runs as it is, and a hook puts the activations in the place of the layer's.

The head runs the network on a fixed input, the carrier, whose own activations are replaced. This is exact for
any control flow, and needs no code that can be traced. It is a cut only if the logits are the same for every
carrier, which whoever calls :func:`split` has to check.

Hooks and replaced methods are on the network only while a part runs, and act in its thread alone. The parts
are not for torch.compile, which does not see them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from explainers.models.cutting.recording import Call, StoppedError, Stub, calls_of, give, record
from explainers.models.cutting.refusals import called_less_often, never_called
from explainers.models.own_thread import own_thread
from explainers.numerics.batching import out_of_memory

# The parts of all cuts share the modules of their networks, so that one part runs at a time.
_RUNNING = threading.RLock()


@dataclass(frozen=True)
class Place:
    """Where activations are read and put.

    Attributes
    ----------
    module
        The target module.
    before
        Whether its (first) input is meant, not its output.
    """

    module: nn.Module
    before: bool

    def watch(self, undo: ExitStack, see: Callable[[Any], Any], mine: Callable[[], bool]) -> None:
        """Call ``see`` with what passes the place; what it returns, if not None, passes instead."""
        if self.before:
            handle = self.module.register_forward_pre_hook(
                lambda _, args, kwargs: see((args, kwargs)) if mine() else None, with_kwargs=True
            )
        else:
            handle = self.module.register_forward_hook(lambda _, __, output: see(output) if mine() else None)
        undo.callback(handle.remove)


def split(network: nn.Module, layer: str, inputs: Tensor) -> tuple[Backbone, Head, list[Head]]:
    """Cut ``network`` at a layer.

    Parameters
    ----------
    network
        Any module that takes one tensor, in eval mode.
    layer
        A module's name, which may end in ``:input``.
    inputs
        (B, C, H, W), normalised.

    Returns
    -------
    backbone, head
        From inputs to activations, and from there to what the network returns.
    cheaper
        Heads that take what comes before the layer from a record, the cheapest first. Not every network can
        be run in this way.

    Raises
    ------
    CutError
        In one line: the layer is never called.
    """
    name, _, side = layer.partition(":")
    place = Place(network.get_submodule(name), bool(side))
    # The carrier is unlike each of the inputs, in its mean as well, so that they show whether it matters.
    carrier = 0.25 * inputs[:1].flip(-1) + 0.7
    calls, _ = calls_of(network, carrier)
    own = [position for position, call in enumerate(calls) if call.module is place.module]
    if not own:
        raise never_called(name)
    head = Head(network, place, carrier, [_around(calls, position) for position in own])
    plan = _before(calls, own[-1], itself=not place.before)
    cheaper = [head.with_record(plan, lend) for lend in (True, False)] if plan else []
    return Backbone(network, place, len(own)), head, cheaper


def _before(calls: list[Call], last: int, itself: bool) -> dict[int, nn.Module]:
    """The outermost calls that are done when the call at ``last`` begins, by position.

    The call itself is among them if ``itself`` says so: what it gives is replaced.
    """
    done = {
        position
        for position, call in enumerate(calls)
        if (call.ended is not None and call.ended < calls[last].begun) or (itself and position == last)
    }
    return {
        position: calls[position].module for position in sorted(done) if calls[position].within not in done
    }


def _around(calls: list[Call], position: int) -> set[int]:
    """The positions of the calls during which a call is made."""
    found = set()
    within = calls[position].within
    while within is not None:
        found.add(within)
        within = calls[within].within
    return found


def _first(value: Any) -> Tensor:
    """The first tensor of what a module takes or gives."""
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError("no tensor passes there")


def _with_first(value: Any, tensor: Tensor) -> Any:
    """What a module takes or gives, with another first tensor."""
    leaves, spec = tree_flatten(value)
    place = next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    return tree_unflatten([*leaves[:place], tensor, *leaves[place + 1 :]], spec)


class Backbone(nn.Module):
    """Runs a network up to a place, and gives what passes there."""

    def __init__(self, network: nn.Module, place: Place, calls: int) -> None:
        super().__init__()
        self.network, self.place, self.calls = network, place, calls

    def forward(self, inputs: Tensor) -> Tensor:
        """Activations of (B, C, H, W) inputs; differentiable."""
        seen: list[Tensor] = []

        def see(value: Any) -> None:
            seen.append(_first(value))
            if len(seen) == self.calls:
                raise StoppedError

        with _RUNNING, ExitStack() as undo:
            self.place.watch(undo, see, own_thread())
            try:
                self.network(inputs)
            except StoppedError:
                return seen[-1]
        raise called_less_often(len(seen), self.calls)


class Head(nn.Module):
    """Runs a network on a carrier, with given activations in the place of its own.

    Parameters
    ----------
    network, place
        The network, and where the activations are put.
    carrier
        (1, C, H, W), the normalised input on which the network runs.
    around
        For each call of the target, the positions of the calls during which it is made.
    """

    def __init__(self, network: nn.Module, place: Place, carrier: Tensor, around: Sequence[Set[int]]) -> None:
        super().__init__()
        self.network, self.place, self.carrier = network, place, carrier
        self._around = around
        self._plan: dict[int, nn.Module] = {}
        self._lend = False
        self._stubs: dict[int, Stub] | None = None

    def with_record(self, plan: dict[int, nn.Module], lend: bool) -> Head:
        """The head that takes the outputs of some calls from a record.

        Parameters
        ----------
        plan
            The modules that are called, by the positions of the calls.
        lend
            Whether the network gets views of the record and of the carrier, to which it must not write.
        """
        other = Head(self.network, self.place, self.carrier, self._around)
        other._plan, other._lend = plan, lend
        return other

    def on(self, carrier: Tensor) -> Head:
        """The head without a record, on another carrier."""
        return Head(self.network, self.place, carrier, self._around)

    def forward(self, activations: Tensor) -> Tensor:
        """What the network returns for activations (B, \\*shape); differentiable."""
        with _RUNNING, ExitStack() as undo:
            stubs = self._recorded()
            mine = own_thread()
            waiting = give(undo, list(stubs.values()), len(activations), self._lend, mine)
            # A call of the target during one that is taken from the record is not made.
            missing = sum(not stubs.keys() & around for around in self._around)

            def see(value: Any) -> Any:
                nonlocal missing
                missing -= 1
                if missing != 0:
                    return None
                if waiting:
                    raise RuntimeError("the network calls other modules than when it was cut")
                return _with_first(value, activations.clone())  # the network may write to it

            self.place.watch(undo, see, mine)
            carried = self.carrier.expand(len(activations), *self.carrier.shape[1:])
            returned: Tensor = self.network(
                carried if self._lend else carried.clone(memory_format=torch.contiguous_format)
            )
        if missing > 0:
            raise RuntimeError("the network calls the layer less often than when it was cut")
        return returned

    def _recorded(self) -> dict[int, Stub]:
        if self._stubs is None:
            self._stubs = record(self.network, self.carrier, self._plan) if self._plan else {}
        return self._stubs

    @property
    def intact(self) -> bool:
        """Whether nothing wrote to the record."""
        return not any(stub.writes for stub in self._recorded().values())

    def reads_carrier(self, activations: Tensor) -> bool | None:
        """Whether a path that has gradients leads from the carrier to the logits (B, K).

        A gradient of zero is a path as well: behind a ReLU, other inputs may have another one.

        Returns
        -------
        bool or None
            None if it cannot be told, since the network lets no gradient through.
        """
        carrier = self.carrier.clone().requires_grad_()
        with torch.enable_grad():
            try:
                logits = self.on(carrier)(activations)
                if not logits.requires_grad:
                    return False
                (gradient,) = torch.autograd.grad(logits.sum(), carrier, allow_unused=True)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                return None
        return gradient is not None

    def __getstate__(self) -> dict[str, Any]:
        """Copies make a record of their own, since their weights change."""
        return vars(self) | {"_stubs": None}
