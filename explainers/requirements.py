"""What an explainer needs and a classifier may lack, asked before any work starts."""

from __future__ import annotations

from collections.abc import Set

import torch

from explainers.additivity import additive_head
from explainers.attention import reads_attention
from explainers.base import Batch, Need
from explainers.black_box import BlackBox
from explainers.classifier import Classifier
from explainers.head_gradient import head_gradient_and_curvature


def unmet(needs: Set[Need], classifier: BlackBox) -> str | None:
    """What ``classifier`` lacks of ``needs``: the end of the sentence "the explainer ..."; None if nothing.

    :attr:`Need.PREDICTION` is a matter of the job and not looked at here.
    """
    if not isinstance(classifier, Classifier):
        if needs <= {Need.PREDICTION, Need.SEQUENCE}:
            return None
        return f"explains images, and the dataset's inputs are {classifier.modality}s"
    if Need.SEQUENCE in needs:
        return "explains texts and numbers, and the dataset's inputs are images"
    if Need.PATCHES in needs and not classifier.supports_patches:
        return "needs a vision transformer that runs on a subset of its patch tokens"
    if Need.ATTENTION in needs and not reads_attention(classifier):
        return "needs a vision transformer whose attention can be read"
    if Need.CURVATURE in needs and not _differentiable_twice(classifier):
        return (
            f"needs a head that can be differentiated twice, and an operation behind {classifier.layer!r} "
            "cannot; name a later layer"
        )
    if Need.POOLED in needs and not _pooled(classifier):
        return (
            f"needs a head that is global average pooling and one linear layer, and behind "
            f"{classifier.layer!r} it is not"
        )
    return None


def _differentiable_twice(classifier: Classifier) -> bool:
    probe = torch.rand(1, *classifier.activation_shape, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, dtype=torch.int64, device=classifier.device)
    batch = Batch(probe, target, target, probe.to(classifier.device))
    try:
        head_gradient_and_curvature(classifier, batch, slice(0, 1))
    except RuntimeError:
        return False
    return True


def _pooled(classifier: Classifier) -> bool:
    head = additive_head(classifier)
    return head is not None and head.per_mean is not None
