"""Probes of what a network returns for rows of inputs of any modality."""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from explainers.numerics.differences import difference

TOLERANCE = 1e-4  # of the largest logit: rounding of batches of other sizes stays below it


class RefusedError(ValueError):
    """A probe refuses a network; the message is one line that begins with the key."""


class Asked:
    """A classifier that is asked, with what several probes read of it.

    Attributes
    ----------
    classifier
        The classifier.
    inputs
        Four seeded inputs that differ strongly: (4, C, \\*sites).
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier
        self.inputs = inputs = _four(classifier)
        self._logits = cache(lambda: classifier.logits(inputs))  # copies for other layers share them

    def at_each_layer(self) -> list[Asked]:
        """The same questions to the classifier of images at each of its target layers."""
        found = []
        for classifier in self.classifier.at_each_layer:
            found.append(copy(self))
            found[-1].classifier = classifier
        return found

    @property
    def logits(self) -> Tensor:
        """(4, K) logits of the inputs, which are computed once."""
        found: Tensor = self._logits()
        return found

    @property
    def good(self) -> Tensor:
        """(4,) bool: the inputs whose logits are all finite."""
        return self.logits.isfinite().all(1)


def _four(classifier: Any) -> Tensor:
    first = classifier.probed[:2]
    if classifier.graded:
        return torch.cat([first, torch.zeros_like(first[:1]), torch.ones_like(first[:1])])
    # Texts: tokens of the longer one are taken out, so that lengths differ as well.
    nothing = classifier.fill(first[:1], "remove")
    generator = torch.Generator().manual_seed(1)
    others = []
    for share in (0.3, 0.7):
        hidden = torch.rand(first[:1, 0].shape, generator=generator).to(first.device) < share
        others.append(torch.where(hidden[:, None], nothing, first[:1]))
    return torch.cat([first, *others])


def finite(asked: Asked) -> str:
    """Refuse weights that hold NaN, and logits that are not finite for any input."""
    network = asked.classifier.network
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if bool(tensor.isnan().any()):
            raise RefusedError(
                f"model.weights: {name} holds NaN, from which no logits follow; give weights that are whole"
            )
    good = asked.good
    if bool(good.any()):
        return f"logits of {int(good.sum())} of {len(good)} inputs are finite"
    infinite = [name for name, tensor in network.named_parameters() if not tensor.isfinite().all()]
    if infinite:
        raise RefusedError(
            f"model.weights: {infinite[0]} holds infinite numbers; give weights that are whole"
        )
    raise RefusedError(
        f"model.source: the network's logits are infinite or NaN for all of {len(good)} inputs; check its "
        "weights and its preprocessing (model.mean, model.std)"
    )


def twice(asked: Asked) -> str:
    """Refuse a network that gives the same batch other logits the second time."""
    good = asked.good
    worst = difference(asked.classifier.logits(asked.inputs)[good], asked.logits[good])
    if not worst <= TOLERANCE:
        raise RefusedError(
            f"model.source: the same inputs get other logits the second time ({in_words(worst)}); "
            "switch off dropout, random numbers and what the network remembers"
        )
    return in_words(worst)


def batch(asked: Asked) -> str:
    """Refuse a network whose logits of an input depend on the other inputs of the batch."""
    worst = 0.0
    larger = ([0, 2], [3, 1, 0], [0, 1, 2, 3] * 2 + [0])  # some do it in larger batches only
    for rows in ([0], [1], [2], [3], *larger):
        there = asked.good[rows]
        if bool(there.any()):
            found = asked.classifier.logits(asked.inputs[rows])[there]
            # A row whose logits are no longer finite beside others is as wrong: the comparison is false then.
            share = difference(found, asked.logits[rows][there])
            worst = share if not share <= worst else worst
    if not worst <= TOLERANCE:
        raise RefusedError(
            "model.source: the logits of an input depend on the other inputs of its batch "
            f"({in_words(worst)}); replace what works over the batch, "
            "such as BatchNorm with track_running_stats = False"
        )
    return in_words(worst)


def in_words(share: float) -> str:
    """A share of the largest logit in words."""
    return f"largest difference {share:.1e} of the largest logit"
