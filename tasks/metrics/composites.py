"""Forward passes over altered inputs, several per image, which are made on the device chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from explainers.probes.masked_forward import MaskedForward, target_probability, with_prediction
from tasks.metrics.base import MetricBatch

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


def target_probabilities(
    classifier: BlackBox,
    batch: MetricBatch,
    variants: int,
    compose: Callable[[Tensor, Tensor], Tensor],
    same: Tensor | None = None,
) -> Tensor:
    """Compute the probability of each input's target on each of its variants.

    Parameters
    ----------
    variants
        Number of variants per input, at least 1.
    compose
        Makes n altered inputs (n, C, \\*sites) from the indices of n inputs and n variants, (n,) int64 each.
        n is at most ``batch.forwards``, so that B * variants inputs never exist at the same time.
    same
        (B, variants). Two variants of an input with the same number are equal, and are passed once.

    Returns
    -------
    (B, variants)
        Probabilities, in [0, 1].
    """
    masked = MaskedForward(classifier, batch.targets, batch.forwards, target_probability)
    return masked.variants(variants, compose, same)


# (n, 2): the target's probability, and 1 where the target is predicted, else 0.
probability_and_prediction = with_prediction(target_probability)
