"""The exact order of sites from the most to the least salient, with ties broken by a seed per image."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.numerics.randomness import random_bits


def ranks(maps: Tensor, seeds: Tensor) -> Tensor:
    """Rank the sites of each map; 0 is the most salient.

    Equal values are put in the random order of the image's seed. A fixed order would favour one corner of a
    flat map, and a threshold would take all sites of a plateau or none. The order depends on the map and its
    seed alone, and not on the batch or the device.

    Parameters
    ----------
    maps
        (B, \\*sites) floats. Prepared maps are -inf at sites that cannot be hidden, so these come last.
    seeds
        (B,) int64.

    Returns
    -------
    (B, N) int64
        A permutation of 0 .. N-1 per map, with the sites in row-major order. A map with NaN is ranked too;
        the caller gives it no score.
    """
    values = maps.flatten(1)
    # The stable sort keeps the shuffled order of equal values.
    shuffled = random_bits(seeds, values.shape[1]).argsort(1)
    descending = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, descending)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def sites_of(maps: Tensor) -> Tensor:
    """Count the sites that have a value in each prepared (B, \\*sites) map: (B,) int64, at least 1."""
    return (~maps.flatten(1).isneginf()).sum(1).clamp(min=1)
