"""Why a network cannot be cut at a layer; every message is one line that begins with the key."""

from __future__ import annotations


class CutError(ValueError):
    """The network cannot be cut at the layer."""


class UntraceableError(CutError):
    """The code around the layer cannot be traced, which says nothing about the layer itself."""


def untraceable(name: str, why: str) -> UntraceableError:
    """The code of the modules that contain the layer cannot be traced."""
    return UntraceableError(
        f"model.layer: the modules around {name!r} branch in ways that cannot be traced ({why}); name a "
        "layer nested less deeply, or give the network as a callable without such branches"
    )


def never_called(name: str) -> CutError:
    """A module does not run in a forward pass, or its method is called in place of the module."""
    return CutError(f"model.layer: {name!r} is never called as a module; name one inside or after it")


def called_less_often(times: int, before: int) -> CutError:
    """For some inputs, a module runs less often than for those on which the network was cut."""
    return CutError(
        f"model.layer: for some inputs the network calls the layer {times} times, and for those on which it "
        f"was tried {before} times; name one that is always called as often, or choose explainers that need "
        "no layer"
    )


def of_no_consequence(layer: str) -> CutError:
    """The logits do not depend on the layer."""
    return CutError(f"model.layer: the logits do not depend on {layer!r}; name another layer")


def bypassed(layer: str) -> CutError:
    """The logits depend on something beside the layer."""
    return CutError(
        f"model.layer: the network has a path around {layer!r} (a skip connection or a second branch); "
        "name a later layer, or the module that contains it"
    )


def not_reproduced(layer: str) -> CutError:
    """The parts do not give the network's own logits."""
    return CutError(
        f"model.layer: cut at {layer!r}, the network does not reproduce its own logits (it draws random "
        "numbers, writes to a tensor in place, or keeps values of an earlier pass); name another layer"
    )


def no_batch(layer: str) -> CutError:
    """The layer's output is none that explainers can read."""
    return CutError(
        f"model.layer: cannot explain {layer!r}: its output is not a tensor whose first axis is the batch"
    )


def stopped(layer: str, why: str) -> CutError:
    """A part of the network stopped with an exception."""
    return CutError(f"model.layer: cut at {layer!r}, the network stops ({why}); name another layer")


def recomputed(layer: str) -> CutError:
    """The backward pass runs the layer again, without the activations that were put in its place."""
    return CutError(
        f"model.layer: the network computes {layer!r} again in its backward pass (gradient checkpointing); "
        "switch that off, or name a layer outside of what is computed again"
    )
