"""The order of pixels, or tokens, from most to least salient, exact, with ties broken by a seed per image."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.numerics.randomness import random_bits


def ranks(maps: Tensor, seeds: Tensor) -> Tensor:
    """Rank the sites of each map; 0 is the most salient.

    Equal values are put in the random order of the image's seed. A fixed order would favour a corner of
    flat maps, and a threshold would take all of a plateau or nothing. The order depends on the map and its
    seed alone, not on the batch or the device.

    Parameters
    ----------
    maps
        (B, \\*sites) floats; prepared ones are -inf, and so come last, where there is nothing to hide.
    seeds
        (B,) int64.

    Returns
    -------
    (B, N) int64
        A permutation of 0 .. N-1 for each map, sites in row-major order. A map with NaN is ranked too;
        the caller gives it no score.
    """
    values = maps.flatten(1)
    shuffled = random_bits(seeds, values.shape[1]).argsort(1)
    descending = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, descending)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def sites_of(maps: Tensor) -> Tensor:
    """(B,) int64: how many sites of each prepared (B, \\*sites) map have a value; at least 1."""
    return (~maps.flatten(1).isneginf()).sum(1).clamp(min=1)
