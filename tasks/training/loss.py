"""What P-TAME's head is trained for: a small mask under which the classifier still sees its class."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

_Q = 2  # power of the total variation
_OFFSET = 0.0005  # keeps the gradient of the power finite at zero


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss, ``power`` of the area, ``border`` (beta) of the total variation."""

    ce: float
    area: float
    tv: float
    power: float
    border: float = 0.3


@dataclass(frozen=True)
class Losses:
    """Scalars: the loss, its parts before they are weighted, and the mean of every image's own mask."""

    total: Tensor
    ce: Tensor
    area: Tensor
    tv: Tensor
    mask_area: Tensor


def losses(logits: Tensor, targets: Tensor, maps: Tensor, weights: LossWeights) -> Losses:
    """The loss of one batch (arXiv 2501.17813, and the settings of its release).

    Parameters
    ----------
    logits
        (B, K) of the classifier on the masked images.
    targets
        (B,) the classes predicted on the whole ones.
    maps
        (B, B, h, w) in (0, 1): every image's maps of the targets of all images, its own on the diagonal.
    weights
        Of the parts.
    """
    ce = F.cross_entropy(logits.float(), targets)
    area = maps.mean() if weights.power == 1 else ((maps + _OFFSET) ** weights.power).mean()
    tv = total_variation(maps, weights.border)
    total = weights.ce * ce + weights.area * area + weights.tv * tv
    return Losses(total, ce, area, tv, maps.diagonal().mean())


def total_variation(maps: Tensor, border: float) -> Tensor:
    """Squared differences of neighbours and ``border`` times the squares along the edges, over 2 B; a scalar.

    CHOICE: the values along the edges are squared one by one, corners counting for both of their edges.
    """
    down = ((maps[..., 1:, :] - maps[..., :-1, :]).abs() ** _Q).sum()
    across = ((maps[..., 1:] - maps[..., :-1]).abs() ** _Q).sum()
    edges = (maps[..., 0, :], maps[..., -1, :], maps[..., 0], maps[..., -1])
    edge = sum((values**_Q).sum() for values in edges)
    return (down + across + border * edge) / (_Q * len(maps))
