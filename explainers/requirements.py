"""Whether a classifier has what an explainer needs; it is checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Set

import torch

from explainers.base import OF_LAYER, Batch, Need
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.probes.additivity import additive_head
from explainers.probes.attention import unread_attention
from explainers.probes.head_gradient import head_gradient_and_curvature


def unmet(needs: Set[Need], classifier: BlackBox) -> str | None:
    """The first of an explainer's needs that the classifier does not meet.

    :attr:`Need.PREDICTION` concerns the job and :attr:`Need.TRAINED` the explainer; neither is checked here.
    No classifier meets :attr:`Need.GIVEN`: who reads the maps leaves that need out.

    Parameters
    ----------
    needs
        What the explainer needs.
    classifier
        The classifier that is to be explained. It may be run on a few inputs.

    Returns
    -------
    str or None
        The end of a sentence that begins with "the explainer", such as "needs a vision transformer whose
        attention can be read"; None if nothing is lacking.
    """
    if Need.GIVEN in needs:
        return "needs maps that another program made, which only a job reads"
    if not isinstance(classifier, Classifier):
        if needs <= {Need.PREDICTION, Need.SEQUENCE}:
            return None
        return f"explains images, and the dataset's inputs are {classifier.modality}s"
    asked = classifier.at_each_layer if needs & OF_LAYER else (classifier,)
    lacking = (lacks(each) for need, lacks in _LACKS.items() if need in needs for each in asked)
    return next((told for told in lacking if told is not None), None)


def _pixels_only(classifier: Classifier) -> str:
    return f"explains texts and numbers, and the dataset's inputs are {classifier.modality}s"


def _patches(classifier: Classifier) -> str | None:
    told = "needs a vision transformer that runs on a subset of its patch tokens; of this network, "
    reason = classifier.lacks_patches
    return reason and told + reason


def _attention(classifier: Classifier) -> str | None:
    reason = unread_attention(classifier)
    return reason and f"needs a vision transformer whose attention can be read; of this network, {reason}"


def _curvature(classifier: Classifier) -> str | None:
    probe = torch.rand(1, *classifier.activation_shape, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, dtype=torch.int64, device=classifier.device)
    batch = Batch(probe, target, target, probe.to(classifier.device))
    # PyTorch lists nowhere which operations have a second derivative, so one is computed to find out.
    try:
        head_gradient_and_curvature(classifier, batch, slice(0, 1))
    except RuntimeError:
        return (
            f"needs a head that can be differentiated twice, and an operation behind {classifier.layer!r} "
            "cannot be; name a later layer"
        )
    return None


def _pooled(classifier: Classifier) -> str | None:
    head = additive_head(classifier)
    if head is not None and head.per_mean is not None:
        return None
    return (
        "needs a head that is global average pooling and one linear layer, and the head behind "
        f"{classifier.layer!r} is not"
    )


_LACKS: dict[Need, Callable[[Classifier], str | None]] = {
    Need.SEQUENCE: _pixels_only,
    Need.PATCHES: _patches,
    Need.ATTENTION: _attention,
    Need.CURVATURE: _curvature,
    Need.POOLED: _pooled,
}
