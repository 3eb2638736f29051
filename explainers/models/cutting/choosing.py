"""Choose the way in which a network is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from explainers.models.cutting import traced

Way = Literal["fx"]


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
        How it was cut: "fx".
    """

    backbone: nn.Module
    head: nn.Module
    way: Way


def cut(network: nn.Module, layer: str, inputs: Tensor) -> Cut:  # noqa: ARG001
    """Cut ``network`` at a layer.

    Parameters
    ----------
    network
        Any module that takes one tensor, in eval mode.
    layer
        Name of a module, as in ``network.named_modules()``. If it ends in ``:input``, the cut is at the
        module's (first) input instead of its output. If a module is called several times, the last call
        counts.
    inputs
        (B, C, H, W), two or more different inputs, normalised.

    Raises
    ------
    ValueError
        In one line that begins with ``model.layer``: what prevents the cut, and what to do.
    """
    return Cut(*traced.split(network, layer), way="fx")
