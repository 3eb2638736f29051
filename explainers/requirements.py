"""What an explainer needs and a classifier may lack, asked before any work starts."""

from __future__ import annotations

from collections.abc import Set

from explainers.additivity import additive_head
from explainers.attention import reads_attention
from explainers.base import Need
from explainers.classifier import Classifier


def unmet(needs: Set[Need], classifier: Classifier) -> str | None:
    """What ``classifier`` lacks of ``needs``: the end of the sentence "the explainer ..."; None if nothing.

    :attr:`Need.PREDICTION` is a matter of the job and not looked at here.
    """
    if Need.PATCHES in needs and not classifier.supports_patches:
        return "needs a vision transformer that runs on a subset of its patch tokens"
    if Need.ATTENTION in needs and not reads_attention(classifier):
        return "needs a vision transformer whose attention can be read"
    if Need.POOLED in needs and not _pooled(classifier):
        return (
            f"needs a head that is global average pooling and one linear layer, and behind "
            f"{classifier.layer!r} it is not"
        )
    return None


def _pooled(classifier: Classifier) -> bool:
    head = additive_head(classifier)
    return head is not None and head.per_mean is not None
