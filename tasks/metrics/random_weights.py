"""Copies of a classifier with some of its weights replaced by random ones."""

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
    """Return the network of a classifier.

    Raises
    ------
    ValueError
        In one line, if the classifier has no network, or one without parameters.
    """
    network = getattr(classifier, "network", None)
    if not isinstance(network, nn.Module) or not layers_with_weights(network):
        raise ValueError("model.source: the classifier has no parameters that could be drawn anew")
    return network


def layers_with_weights(network: nn.Module) -> list[nn.Module]:
    """Return the modules that own learnt values, from the logits towards the input.

    These are the modules with parameters of their own, or with running statistics, in the reverse of the
    order in which they were registered. The parameters that the network itself owns come last. For the class
    token and the position embedding this is the right place; for the projection after an open_clip tower it
    is not.
    """
    return [module for module in network.modules() if _has_weights(module)][::-1]


def _has_weights(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or getattr(module, "running_mean", None) is not None


@torch.inference_mode(False)  # otherwise no explainer could take gradients through the copy
@torch.no_grad()
def with_random_weights(classifier: BlackBox, layers: Iterable[int]) -> BlackBox:
    """Copy the classifier and draw new weights for some of its layers.

    The new weights of a layer depend on its index alone, so they are the same in all copies, and in every
    batch, shard and job. They come from the device's own generator, so another kind of device draws others.

    Parameters
    ----------
    layers
        Indices into :func:`layers_with_weights`.
    """
    clone = copy.deepcopy(classifier)
    vars(clone).pop("fingerprint", None)  # a cached fingerprint belongs to the original weights
    modules = layers_with_weights(network_of(clone))
    with global_generators(0, clone.device):
        for layer in layers:
            torch.manual_seed(seed_of("randomisation", layer))
            _randomise(modules[layer])
    return clone


@torch.inference_mode(False)
def free_weights(clone: BlackBox) -> None:
    """Free the weights of a copy that is no longer needed.

    The two halves of a cut network contain reference cycles. Without this call, copies would stay on the
    device until Python collects such cycles.
    """
    for parameter in network_of(clone).parameters():
        parameter.data = parameter.data.new_empty(0)


def _randomise(module: nn.Module) -> None:
    """Draw new values for a module's own parameters.

    A module without trainable submodules is reset by its ``reset_parameters``, if it has one, as in an
    untrained network. Batch normalisation then loses its running statistics as well, and signals shrink from
    layer to layer (the raw maps of a MobileNetV2 by 1e-10), which prepared maps do not show.

    The other parameters are drawn from a normal distribution around 0 with their root mean square. These are
    parameters that no reset reaches, and parameters of modules with trainable submodules (class tokens,
    position embeddings, the input projection of attention), whose reset might change the submodules too.
    CHOICE: the distribution does not have the parameters' mean and deviation, so that single numbers and
    constants change too; only zeros stay.
    """
    for parameter in module.parameters(recurse=False):
        parameter.normal_(0, float(parameter.float().square().mean().sqrt()))
    reset = getattr(module, "reset_parameters", None)
    if callable(reset) and not any(True for child in module.children() for _ in child.parameters()):
        reset()
