"""What is said where a network cannot be cut at a layer; every text is one line."""

from __future__ import annotations


def never_called(name: str) -> str:
    """A module does not run in a forward pass, or its method is called in place of the module."""
    return f"model.layer: {name!r} is never called as a module; name one inside or after it"


def of_no_consequence(layer: str) -> str:
    """The logits do not depend on the layer."""
    return f"model.layer: the logits do not depend on {layer!r}; name another layer"


def bypassed(layer: str) -> str:
    """The logits depend on something beside the layer."""
    return (
        f"model.layer: the network has a path around {layer!r} (a skip connection or a second branch); "
        "name a later layer, or the module that contains it"
    )


def not_reproduced(layer: str) -> str:
    """The parts do not give the network's own logits."""
    return (
        f"model.layer: cut at {layer!r}, the network does not reproduce its own logits (it draws random "
        "numbers, or writes to a tensor in place); name another layer"
    )


def no_batch(layer: str) -> str:
    """The layer's output is none that explainers can read."""
    return f"model.layer: cannot explain {layer!r}: its output is not a tensor whose first axis is the batch"


def stopped(layer: str, why: str) -> str:
    """A part of the network stopped with an exception."""
    return f"model.layer: cut at {layer!r}, the network stops ({why}); name another layer"
