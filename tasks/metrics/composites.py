"""Forward passes over altered inputs, several an image, made on the device a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from explainers.masked_forward import MaskedForward, target_probability
from tasks.metrics.base import MetricBatch

if TYPE_CHECKING:
    from explainers.classifier import Classifier


def target_probabilities(
    classifier: Classifier, batch: MetricBatch, variants: int, compose: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(B, variants) softmax probability of each image's target on each of its variants, at least one.

    ``compose`` makes n altered inputs (n, 3, H, W) in [0, 1] from image and variant indices, (n,) int64 each;
    n is at most ``batch.forwards``, so B * variants inputs never exist together.
    """
    masked = MaskedForward(classifier, batch.targets, batch.forwards, target_probability)
    return masked.variants(variants, compose)
