"""The loss of P-TAME's head: it asks for a small mask under which the classifier still predicts its class."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

_Q = 2  # power of the total variation
_OFFSET = 0.0005  # keeps the gradient of the power finite at zero


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss, and their parameters.

    Attributes
    ----------
    ce, area, tv
        Weights of the cross-entropy, the area and the total variation.
    power
        Exponent of the mask values in the area.
    border
        Weight of the edges in the total variation (beta).
    """

    ce: float
    area: float
    tv: float
    power: float
    border: float = 0.3


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its parts, all scalars.

    Attributes
    ----------
    total
        The weighted sum.
    ce, area, tv
        Cross-entropy, area and total variation before they are weighted.
    mask_area
        Mean of every image's own mask.
    """

    total: Tensor
    ce: Tensor
    area: Tensor
    tv: Tensor
    mask_area: Tensor


def losses(log_probability: Tensor, targets: Tensor, maps: Tensor, weights: LossWeights) -> Losses:
    """The loss of one batch (arXiv 2501.17813, and the settings of its release).

    Parameters
    ----------
    log_probability
        (B, K) logarithms of the classifier's probabilities for the masked images.
    targets
        (B,) the classes that it predicts for the whole images.
    maps
        (B, B, h, w) in (0, 1): the maps of every image for the targets of all images. The diagonal has the
        maps for the image's own target.
    weights
        Weights and parameters of the parts.
    """
    ce = F.nll_loss(log_probability, targets)
    area = maps.mean() if weights.power == 1 else ((maps + _OFFSET) ** weights.power).mean()
    tv = total_variation(maps, weights.border)
    total = weights.ce * ce + weights.area * area + weights.tv * tv
    return Losses(total, ce, area, tv, maps.diagonal().mean())


def total_variation(maps: Tensor, border: float) -> Tensor:
    """The total variation of maps (B, ..., h, w), a scalar.

    It is the sum of the squared differences of neighbours, and ``border`` times the squares along the edges,
    divided by 2 B.

    CHOICE: the values along the edges are squared one by one, and corners count for both of their edges.
    """
    down = ((maps[..., 1:, :] - maps[..., :-1, :]).abs() ** _Q).sum()
    across = ((maps[..., 1:] - maps[..., :-1]).abs() ** _Q).sum()
    edges = (maps[..., 0, :], maps[..., -1, :], maps[..., 0], maps[..., -1])
    edge = sum((values**_Q).sum() for values in edges)
    return (down + across + border * edge) / (_Q * len(maps))
