"""Forward passes over altered inputs, several an image, made on the device a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from explainers.batching import in_chunks
from tasks.metrics.base import MetricBatch

if TYPE_CHECKING:
    from explainers.classifier import Classifier


def target_probabilities(
    classifier: Classifier, batch: MetricBatch, variants: int, compose: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Softmax probability of each image's target on each of its variants.

    Parameters
    ----------
    variants
        Altered inputs per image, at least one.
    compose
        From image and variant indices, (n,) int64 each, to the n altered inputs (n, 3, H, W) in [0, 1]; n is
        at most ``batch.forwards``, so B * variants inputs never exist together.

    Returns
    -------
    (B, variants)
    """

    def evaluate(rows: slice) -> Tensor:
        pairs = torch.arange(rows.start, rows.stop, device=batch.targets.device)
        image, variant = pairs // variants, pairs % variants
        probabilities = classifier.logits(compose(image, variant)).softmax(1)
        return probabilities.gather(1, batch.targets[image, None])[:, 0]

    images = len(batch.targets)
    return in_chunks(evaluate, images * variants, batch.forwards).view(images, variants)
