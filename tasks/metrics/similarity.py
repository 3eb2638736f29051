"""The similarity of two prepared maps of the same input, for metrics that run the explainer again."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.numerics.masking import gaussian_blur
from tasks.metrics.preparation import unreadable

_SIGMA, _RADIUS = 1.5, 5  # pixels: a window of 11x11 (Wang et al. 2004, section III-B)
_C1, _C2 = 0.01**2, 0.03**2  # the constants of Wang et al., for values in [0, 1]


def mean_ranks(values: Tensor) -> Tensor:
    """Rank the values of each row of (B, N), as (B, N) float64.

    The smallest value has rank 1. Equal values share the mean of their ranks.
    """
    ascending = values.sort(1).values
    values = values.contiguous()
    below = torch.searchsorted(ascending, values)
    up_to = torch.searchsorted(ascending, values, right=True)
    return (below + up_to + 1).double() / 2


def spearman(maps: Tensor, others: Tensor) -> Tensor:
    r"""Compute Spearman's rank correlation of maps over their sites: Pearson's correlation of mean ranks.

    Parameters
    ----------
    maps, others
        (B, \*sites) prepared. Both are -inf at the same sites, which do not count.

    Returns
    -------
    (B,) float32
        In [-1, 1]. NaN where either map is NaN or has the same value everywhere.
    """
    a, b = centred_ranks(maps), centred_ranks(others)
    correlation = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return correlation.clamp(-1, 1).float()


def centred_ranks(maps: Tensor) -> Tensor:
    r"""Rank the sites of each map, less the mean rank; the cosine of two of them is Spearman's correlation.

    Parameters
    ----------
    maps
        (B, \*sites), -inf at sites that do not count.

    Returns
    -------
    (B, N) float64
        0 at sites that do not count. NaN for maps that are NaN or have the same value everywhere.
    """
    here = ~maps.flatten(1).isneginf()
    n = here.sum(1, keepdim=True)
    # Sites that do not count are tied at the bottom, so they shift all other ranks equally.
    ranks = mean_ranks(maps.flatten(1))
    centred = here * (ranks - (here * ranks).sum(1, keepdim=True) / n)
    return centred.masked_fill((unreadable(maps) | flat(maps))[:, None], torch.nan)


def flat(maps: Tensor) -> Tensor:
    r"""Return (B,) bool: which prepared (B, \*sites) maps have one value at all sites that count."""
    values = maps.flatten(1)
    return values.amax(1) == values.masked_fill(values.isneginf(), torch.inf).amin(1)


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Compute the mean structural similarity (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004, eq. 13).

    The window is the authors' Gaussian, 11x11 with sigma 1.5. Maps are mirrored at the border, so that all
    pixels count, and maps may be smaller than the window.

    Parameters
    ----------
    maps, others
        (B, H, W) prepared.

    Returns
    -------
    (B,) float32
        In [-1, 1]; 1 for equal maps, flat ones included. NaN where either map is NaN.
    """
    x, y = maps, others
    moments = torch.stack([x, y, x * x, y * y, x * y], 1)
    mean_x, mean_y, xx, yy, xy = gaussian_blur(moments, _SIGMA, _RADIUS).unbind(1)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    covariance, variances = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
    structure = (2 * covariance + _C2) / (variances + _C2)
    return (luminance * structure).mean((1, 2)).clamp(-1, 1).float()
