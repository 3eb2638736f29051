"""Find out whether a classifier's head is a sum over units, by running the head, not from a list of names."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.models.classifier import Classifier
from explainers.models.compute import full_precision
from explainers.numerics.batching import in_chunks
from explainers.numerics.delta_debugging import Sums
from explainers.numerics.randomness import uniform

PROBES = 4
_CHUNK = 8  # passes through the head; fixed, so that every worker rounds alike and comes to the same result
# In units of rounding: published additive heads stay below 10, interacting ones were seen above 20,000.
_TOLERANCE = 200


@dataclass(frozen=True)
class AdditiveHead:
    """A head with ``logits(S) = bias + sum over u in S of the contribution of u``.

    Attributes
    ----------
    bias
        (C,) logits with every unit at zero.
    per_mean
        (D, C), or None. If it is given, the logits are ``bias`` plus the product of the channels' spatial
        means (D,) with it; where the units are tokens, the means are over all patches. If it is None,
        contributions are read from the head, one unit at a time.
    """

    bias: Tensor
    per_mean: Tensor | None

    def sums(self, classifier: Classifier, activations: Tensor, forwards: int) -> Sums:
        """Contributions of all units to all logits, for B images.

        Parameters
        ----------
        classifier
            The classifier that has this head.
        activations
            (B, \\*classifier.activation_shape).
        forwards
            Passes through the head per step, where contributions are read from it.
        """
        B, U = len(activations), classifier.units.count
        bias = self.bias.expand(B, -1)
        every = torch.arange(B * U, device=activations.device)
        if self.per_mean is not None and classifier.units.kind == "channels":
            means = classifier.spatial(activations).mean((2, 3))
            return Sums(bias, means, self.per_mean, every[:U].expand(B, U))
        if self.per_mean is not None:
            shares = classifier.spatial(activations).flatten(2).mT / U
            contributions = (shares @ self.per_mean).flatten(0, 1)
            return Sums(bias, contributions.new_ones(B, U), contributions, every.view(B, U))

        def alone(rows: slice) -> Tensor:
            images, units = every[rows] // U, every[rows] % U
            masked = classifier.mask_units(activations[images], F.one_hot(units, U).bool())
            return classifier.head(masked) - self.bias

        contributions = in_chunks(alone, B * U, forwards)
        return Sums(bias, contributions.new_ones(B, U), contributions, every.view(B, U))


_known: WeakKeyDictionary[Classifier, AdditiveHead | None] = WeakKeyDictionary()


def additive_head(classifier: Classifier) -> AdditiveHead | None:
    """The head as a sum over units, or None if units interact in it; examined once per classifier.

    The head is additive if ``logits(S u T) + logits(0) = logits(S) + logits(T)`` up to rounding, for random
    disjoint sets S and T of units, on the activations of four fixed, seeded inputs.
    """
    if classifier not in _known:
        # Full precision: additivity is a property of the network, which rounding would hide.
        with torch.inference_mode(), full_precision():
            _known[classifier] = _examine(classifier)
    return _known[classifier]


def _examine(classifier: Classifier) -> AdditiveHead | None:
    activations = classifier.activations(probe_inputs(classifier))
    U = classifier.units.count
    # Each unit goes to S, to T or to neither.
    place = uniform(torch.arange(PROBES), U).to(activations.device)
    S, T = place < 0.4, place > 0.6

    def logits(keep: Tensor) -> Tensor:
        return classifier.head(classifier.mask_units(activations, keep))

    empty, union = logits(torch.zeros_like(S)), logits(S | T)
    if not _equal(union + empty, logits(S) + logits(T)):
        return None
    per_mean = _per_mean(classifier, empty[0])
    pooled = classifier.spatial(activations).mean((2, 3)) @ per_mean + empty
    if _equal(pooled, classifier.head(activations)):
        return AdditiveHead(empty[0], per_mean)
    return AdditiveHead(empty[0], None)


def _per_mean(classifier: Classifier, bias: Tensor) -> Tensor:
    """(D, C): the contribution to the logits of each channel when it is one everywhere."""
    D = classifier.channels

    def constant(rows: slice) -> Tensor:
        ones = bias.new_ones(rows.stop - rows.start, *classifier.activation_shape)
        channels = torch.arange(rows.start, rows.stop, device=bias.device)
        return classifier.head(classifier.mask_channels(ones, F.one_hot(channels, D).bool())) - bias

    return in_chunks(constant, D, _CHUNK)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two (B, C) logits differ by rounding errors only."""
    allowed = _TOLERANCE * torch.finfo(a.dtype).eps * torch.maximum(a.abs(), b.abs()).max()
    return bool((a - b).abs().max() <= allowed)


def probe_inputs(classifier: Classifier) -> Tensor:
    """(4, C, H, W) seeded inputs in [0, 1]: coarse noise mixed with fine noise, so that all scales occur."""
    C, H, W = classifier.input_shape
    seeds = torch.arange(PROBES)
    coarse = uniform(seeds, C * 4 * 4).view(-1, C, 4, 4)
    fine = uniform(seeds + PROBES, C * H * W).view(-1, C, H, W)
    blurred = F.interpolate(coarse, (H, W), mode="bicubic").clamp(0, 1)
    return (0.7 * blurred + 0.3 * fine).to(classifier.device)
