"""Which boxes and which mask of an image count for a map: those of the class that it explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def boxes_of(sample: dict[str, Any], target: int) -> list[list[float]]:
    """The boxes of a sample that count for a map of the class ``target``."""
    boxes, labels = sample["boxes"], sample["box_labels"]
    if labels is None:
        return boxes
    return [box for box, label in zip(boxes, labels, strict=True) if label == target]


def masks_of(masks: Tensor, samples: Sequence[dict[str, Any]], targets: Sequence[int]) -> Tensor:
    """The mask (B, H, W) uint8 that counts for each map: that of its class, if each class has its own.

    Parameters
    ----------
    masks
        (B, H, W) or (B, labels, H, W) uint8, as a run stores them, with one entry per map.
    samples, targets
        The sample and the class of each map.
    """
    if masks.ndim == 3:
        return masks
    classes = [
        sample["labels"].index(target) if target in sample["labels"] else -1
        for sample, target in zip(samples, targets, strict=True)
    ]
    import torch  # imported late, because pages of samples without masks do without it

    place = torch.tensor(classes, device=masks.device)
    own = masks[torch.arange(len(masks), device=masks.device), place.clamp(0, masks.shape[1] - 1)]
    # A class of which the image has no object, or whose mask is not stored, has an empty one.
    return own * ((place >= 0) & (place < masks.shape[1]))[:, None, None]
