"""Choose the way in which a network is cut: the cheapest one whose parts give the network's own logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from explainers.models.cutting import replayed, traced
from explainers.models.cutting.refusals import (
    CutError,
    UntraceableError,
    bypassed,
    no_batch,
    not_reproduced,
    recomputed,
    stopped,
)
from explainers.numerics.batching import out_of_memory
from explainers.numerics.differences import difference
from plugins.reasons import first_line

Way = Literal["fx", "replay"]

_SHARE = 1e-4  # of what the inputs change in the logits: more is no rounding
_ROUNDING = 5e-5  # of the largest logit: batches of other sizes stay below it
_ALIKE = 10 * _ROUNDING  # of the largest logit: what inputs change less is taken for nothing


@dataclass(frozen=True)
class Cut:
    """A network in two parts, which share its modules and parameters.

    Attributes
    ----------
    backbone
        From normalised inputs (B, C, H, W) to the activations at the layer.
    head
        From the activations to what the network returns.
    way
        How it was cut: "fx" (traced with :mod:`torch.fx`) or "replay" (the network runs as it is, with the
        activations put in the place of the layer's).
    """

    backbone: nn.Module
    head: nn.Module
    way: Way


_WAYS: dict[Way, Callable[[nn.Module, str, Tensor], tuple[nn.Module, nn.Module, Sequence[replayed.Head]]]] = {
    "fx": lambda network, layer, _: (*traced.split(network, layer), ()),
    "replay": replayed.split,
}


@torch.inference_mode(False)  # what is recorded is kept, and gradients are taken through it
@torch.no_grad()
def cut(network: nn.Module, layer: str, inputs: Tensor) -> Cut:
    """Cut ``network`` at a layer.

    Every way is tried, the cheapest first, and taken if its parts give the network's own logits for one input
    and for all together, and let gradients through. Where no way lets gradients through, as in a network that
    was made in inference mode, the first one is taken that gives the logits. The network is left as it was.

    Parameters
    ----------
    network
        Any module that takes one tensor and returns logits (B, K), in eval mode.
    layer
        Name of a module, as in ``network.named_modules()``. If it ends in ``:input``, the cut is at the
        module's (first) input instead of its output. If a module is called several times, the last call
        counts. If a module gives several tensors, the first one is meant.
    inputs
        (B, C, H, W), two or more different inputs, normalised.

    Raises
    ------
    CutError
        In one line that begins with ``model.layer``: what prevents the cut, and what to do.
    """
    asked = _Asked(layer, inputs, network(inputs))
    refusals: list[CutError] = []
    spare: Cut | None = None
    for way, split in _WAYS.items():
        try:
            backbone, head, cheaper = split(network, layer, inputs)
            asked.check(backbone, head)
            asked.check_bypass(backbone, head)
            best = next((each for each in cheaper if asked.serves(backbone, each)), head)
            if asked.differentiates(backbone, best):
                return Cut(backbone, best, way)
            spare = spare or Cut(backbone, best, way)
        except CutError as error:
            refusals.append(error)
        except Exception as error:  # a network's own code may stop with an exception of any kind
            if out_of_memory(error):
                raise
            refusals.append(stopped(layer, first_line(error)))
    if spare is not None:
        return spare
    # That the code cannot be traced says nothing about the layer, and is said only if nothing else is known.
    told = [error for error in refusals if not isinstance(error, UntraceableError)]
    raise (told or refusals)[0]


@dataclass(frozen=True)
class _Asked:
    """What the parts of a cut are compared with; the fields are those of :func:`cut`."""

    layer: str
    inputs: Tensor
    logits: Tensor

    def check(self, backbone: nn.Module, head: nn.Module) -> None:
        """Raise CutError if the parts do not give the network's own logits, for one input and for all.

        Heads run when the backbone is done with all inputs, and on these in the reverse order: what a module
        remembers of its last input is a path around the layer too.
        """
        given = [backbone(self.inputs[:count]) for count in (len(self.inputs), 1)]
        for activations, count in zip(given, (len(self.inputs), 1), strict=True):
            readable = isinstance(activations, Tensor) and activations.is_floating_point()
            if not readable or activations.shape[:1] != (count,):
                raise no_batch(self.layer)
            if not self._agrees(head(activations.flip(0)).flip(0), self.logits[:count]):
                raise self._why(backbone, head)

    def check_bypass(self, backbone: nn.Module, head: nn.Module) -> None:
        """Raise CutError if there is a path around the layer, even one that changes the logits too little."""
        if isinstance(head, replayed.Head):
            activations = backbone(self.inputs[:1])
            reads = head.reads_carrier(activations)
            # Where no gradient can be taken, logits that do not change at all say nothing.
            if reads or (reads is None and self._change < _ALIKE):
                raise bypassed(self.layer)
            # What has no gradient, such as a comparison, may be the same for all noise.
            carriers = _unlike(self.inputs)
            found = head.on(carriers)(activations.repeat(len(carriers), *[1] * (activations.ndim - 1)))
            if not self._agrees(found, self.logits[:1].expand(len(carriers), -1)):
                raise bypassed(self.layer)

    def serves(self, backbone: nn.Module, head: replayed.Head) -> bool:
        """Whether a cheaper head gives the network's own logits as well."""
        try:
            self.check(backbone, head)
        except Exception as error:  # it says in a way of its own that what it left out is needed
            if out_of_memory(error):
                raise
            return False
        return head.intact

    @property
    def _change(self) -> float:
        """By how much the inputs change the logits, as a share of the largest one."""
        return difference(self.logits.flip(0), self.logits)

    def _agrees(self, found: Tensor, expected: Tensor) -> bool:
        """Whether logits are the network's own, as far as these are numbers."""
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            return False
        good = expected.isfinite().reshape(len(expected), -1).all(1)  # a single logit may be (B,)
        if not bool(good.any()):
            return True  # nothing can be compared; the probes at load refuse such a network
        return difference(found[good], expected[good]) <= max(_ROUNDING, _SHARE * self._change)

    def _why(self, backbone: nn.Module, head: nn.Module) -> CutError:
        """Why a cut does not give the network's logits."""
        if isinstance(head, replayed.Head):
            own = head.on(self.inputs[:1])
            if self._agrees(own(backbone(self.inputs[:1])), self.logits[:1]):
                return bypassed(self.layer)  # an input's logits come with its own carrier alone
        return not_reproduced(self.layer)

    @torch.enable_grad()
    def differentiates(self, backbone: nn.Module, head: nn.Module) -> bool:
        """Whether a gradient can be taken through the head; raise CutError if it would be a wrong one."""
        leaf = backbone(self.inputs[:1]).detach().clone().requires_grad_()
        again: list[Any] = []
        try:
            score = head(leaf).sum()
            with ExitStack() as undo:
                if isinstance(head, replayed.Head):
                    undo.callback(
                        head.place.module.register_forward_pre_hook(lambda *call: again.append(call)).remove
                    )
                torch.autograd.grad(score, leaf)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            if not again:
                return False
        if again:
            raise recomputed(self.layer)
        return True


def _unlike(inputs: Tensor) -> Tensor:
    """Inputs as different as pixels allow: (k, C, H, W), of one colour each, and one of two halves."""
    low, high = inputs.amin((0, 2, 3)), inputs.amax((0, 2, 3))
    C, H, W = inputs.shape[1:]
    numbers = torch.arange(C, device=inputs.device)
    bright = torch.stack([numbers < 0, numbers >= 0, *(numbers % 3 == each for each in range(min(C, 3)))])
    colours = torch.where(bright, high, low)[:, :, None, None].expand(-1, C, H, W)
    halves = torch.where(torch.arange(W, device=inputs.device) < W // 2, colours[:1], colours[1:2])
    return torch.cat([colours, halves])
