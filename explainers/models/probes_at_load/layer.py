"""Probes of the target layer of a classifier of images: whether its grid can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from explainers.models.cutting.refusals import not_reproduced
from explainers.models.grid_checks import (
    changes,
    follows,
    places_on,
    random_sum,
    reach,
    reached,
)
from explainers.models.probes_at_load.rows import Asked, RefusedError, in_words
from explainers.numerics.differences import difference

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier

_HEAD = 1e-3  # of the largest logit: the cut network may fuse operations otherwise than the whole one


def head(asked: Asked) -> str:
    """Refuse a layer whose activations do not give the network's own logits."""
    classifier, good = asked.classifier, asked.good
    found = classifier.head(classifier.activations(asked.inputs))
    worst = difference(found[good], asked.logits[good])
    if not worst <= _HEAD:
        raise RefusedError(str(not_reproduced(classifier.layer)))
    return f"{in_words(worst)}, cut with {classifier.way}"


def cells(asked: Asked) -> str:
    """Refuse a grid of one cell, and a grid with cells that do not reach the logits.

    A cell reaches them if the gradient there is not zero for one of the inputs. Where it is zero everywhere,
    as behind a ReLU or a maximum it may be, the cell is filled with strong values.
    """
    classifier: Classifier = asked.classifier
    height, width = classifier.grid
    if height * width < 2:
        raise RefusedError(
            f"model.layer: the grid of {classifier.layer!r} has one cell, so that a map of it shows "
            "nothing; name a layer before the pooling, or use larger inputs"
        )
    if "cells" in classifier.target_layer.seen:
        return classifier.target_layer.seen["cells"]
    if bool((asked.logits.diff(dim=0) == 0).all()):
        return "unknown, since all inputs have the same logits"  # e.g. random weights behind a zero head
    activations = classifier.activations(asked.inputs[asked.good])
    with_gradient = _with_gradient(classifier, activations)
    whole, told = reach(with_gradient, classifier.layout, activations[:1], classifier.head)
    if not whole:
        raise RefusedError(f"model.layer: {told}; {classifier.layer!r} is too late, name an earlier layer")
    return told


def _with_gradient(classifier: Classifier, activations: Tensor) -> Tensor:
    """(h, w) bool: whether a random sum of the logits has a gradient in the cell, for one of the inputs."""
    activations = activations.clone()
    with torch.enable_grad():
        logits = classifier.head(activations.requires_grad_())
        if not logits.requires_grad:
            return torch.zeros(classifier.grid, dtype=torch.bool, device=activations.device)
        (gradient,) = torch.autograd.grad(random_sum(logits), activations)
    return reached(classifier.spatial(gradient))


def patch(asked: Asked) -> str:
    """Refuse a grid on which the strongest change does not follow a bright patch over the input."""
    classifier: Classifier = asked.classifier
    if "patch" in classifier.target_layer.seen:
        return classifier.target_layer.seen["patch"]
    places = places_on(classifier.grid)
    (changed,) = changes(
        lambda shown: [classifier.spatial(classifier.activations(shown))[0]],
        classifier.input_shape,
        places,
        classifier.device,
    )
    sound, told = follows(changed, places, len(classifier.activation_shape) == 3)
    if not sound:
        raise RefusedError(
            f"model.layer: the strongest change at {classifier.layer!r} does not follow a bright patch that "
            f"is moved over the input ({told}), so that its cells are not rows and columns of the image; "
            "name another layer"
        )
    return told
