"""What an explainer needs and a classifier may lack, asked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Set

import torch

from explainers.base import Batch, Need
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.probes.additivity import additive_head
from explainers.probes.attention import reads_attention
from explainers.probes.head_gradient import head_gradient_and_curvature


def unmet(needs: Set[Need], classifier: BlackBox) -> str | None:
    """What ``classifier`` lacks of ``needs``: the end of the sentence "the explainer ..."; None if nothing.

    :attr:`Need.PREDICTION` is a matter of the job, :attr:`Need.TRAINED` of the explainer; neither is looked
    at here.
    """
    if not isinstance(classifier, Classifier):
        if needs <= {Need.PREDICTION, Need.SEQUENCE}:
            return None
        return f"explains images, and the dataset's inputs are {classifier.modality}s"
    lacking = (lacks(classifier) for need, lacks in _LACKS.items() if need in needs)
    return next((told for told in lacking if told is not None), None)


def _pixels_only(classifier: Classifier) -> str:
    return f"explains texts and numbers, and the dataset's inputs are {classifier.modality}s"


def _patches(classifier: Classifier) -> str | None:
    told = "needs a vision transformer that runs on a subset of its patch tokens"
    return None if classifier.supports_patches else told


def _attention(classifier: Classifier) -> str | None:
    return None if reads_attention(classifier) else "needs a vision transformer whose attention can be read"


def _curvature(classifier: Classifier) -> str | None:
    probe = torch.rand(1, *classifier.activation_shape, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, dtype=torch.int64, device=classifier.device)
    batch = Batch(probe, target, target, probe.to(classifier.device))
    try:
        head_gradient_and_curvature(classifier, batch, slice(0, 1))
    except RuntimeError:
        return (
            f"needs a head that can be differentiated twice, and an operation behind {classifier.layer!r} "
            "cannot; name a later layer"
        )
    return None


def _pooled(classifier: Classifier) -> str | None:
    head = additive_head(classifier)
    if head is not None and head.per_mean is not None:
        return None
    return (
        f"needs a head that is global average pooling and one linear layer, and behind {classifier.layer!r} "
        "it is not"
    )


_LACKS: dict[Need, Callable[[Classifier], str | None]] = {
    Need.SEQUENCE: _pixels_only,
    Need.PATCHES: _patches,
    Need.ATTENTION: _attention,
    Need.CURVATURE: _curvature,
    Need.POOLED: _pooled,
}
