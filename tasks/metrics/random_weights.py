"""Copies of a classifier with some of its weights drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from explainers.numerics.randomness import global_generators, seed_of

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


def network_of(classifier: BlackBox) -> nn.Module:
    """The network behind a classifier.

    Raises
    ------
    ValueError
        In one line, if it has none whose weights could be drawn anew.
    """
    network = getattr(classifier, "network", None)
    if not isinstance(network, nn.Module) or not layers_with_weights(network):
        raise ValueError("model.source: the classifier has no parameters that could be drawn anew")
    return network


def layers_with_weights(network: nn.Module) -> list[nn.Module]:
    """The modules that own what was learnt, from the logits towards the input.

    Those with parameters of their own, or with running statistics, in the reverse of the order in which they
    were registered. What a network holds itself comes last: class token and position embedding, where it
    belongs, but also the projection behind an open_clip tower.
    """
    return [module for module in network.modules() if _has_weights(module)][::-1]


def _has_weights(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or getattr(module, "running_mean", None) is not None


@torch.inference_mode(False)  # or no explainer could take gradients through the copy
@torch.no_grad()
def with_random_weights(classifier: BlackBox, layers: Iterable[int]) -> BlackBox:
    """A copy of the classifier with ``layers``, numbers into :func:`layers_with_weights`, drawn anew.

    A layer's weights depend on its number alone, so that all copies share them, in every batch, shard and
    job; they come from the device's own generator, and are others on another kind of device.
    """
    clone = copy.deepcopy(classifier)
    vars(clone).pop("fingerprint", None)  # where it was asked for, and so kept, it is that of other weights
    modules = layers_with_weights(network_of(clone))
    with global_generators(0, clone.device):
        for layer in layers:
            torch.manual_seed(seed_of("randomisation", layer))
            _randomise(modules[layer])
    return clone


@torch.inference_mode(False)
def free_weights(clone: BlackBox) -> None:
    """Free the weights of a copy that is done with.

    Both halves of a cut network refer to themselves: without this, copies would stay on the device until
    Python looks for such cycles.
    """
    for parameter in network_of(clone).parameters():
        parameter.data = parameter.data.new_empty(0)


def _randomise(module: nn.Module) -> None:
    """Draw a module's own parameters anew.

    By its ``reset_parameters`` if it has one, as for an untrained network: batch normalisation forgets its
    running statistics as well, and signals shrink from layer to layer (raw maps of a MobileNetV2 by 1e-10),
    which prepared maps do not show. Parameters that this does not reach, or that a module of modules holds
    (class tokens, position embeddings, the input projection of attention), since its own reset might reach
    too far, are drawn from a normal distribution around 0 that keeps their root mean square. CHOICE: rather
    than one of their mean and deviation, so that single numbers and constants change too; only zeros stay.
    """
    for parameter in module.parameters(recurse=False):
        parameter.normal_(0, float(parameter.float().square().mean().sqrt()))
    reset = getattr(module, "reset_parameters", None)
    if callable(reset) and not any(True for child in module.children() for _ in child.parameters()):
        reset()
