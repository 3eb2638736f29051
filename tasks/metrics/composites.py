"""Forward passes over altered inputs, several an image, made on the device a chunk at a time."""

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
    """(B, variants) softmax probability of each input's target on each of its variants, at least one.

    ``compose`` makes n altered inputs (n, C, \\*sites) from input and variant indices, (n,) int64 each, n at
    most ``batch.forwards``, so B * variants inputs never exist together. Where ``same`` (B, variants) has the
    same number twice for an input, so are the altered ones.
    """
    masked = MaskedForward(classifier, batch.targets, batch.forwards, target_probability)
    return masked.variants(variants, compose, same)


# (n, 2): the target's probability, and 1 where it is the prediction, else 0.
probability_and_prediction = with_prediction(target_probability)
