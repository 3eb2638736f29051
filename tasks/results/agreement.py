"""Compares maps that were computed in lower precision, TF32 or compiled with those in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from storage.records import Agreement
from tasks.metrics.similarity import spearman


def agreement_of(maps: Tensor, reference: Tensor, sites: Tensor) -> Agreement:
    """How well raw maps agree with their reference: the mean and the worst value over the maps.

    ``rank_correlation`` is Spearman's, over the maps that have an order in both. ``difference`` is the
    Euclidean norm of the difference over that of the reference, over the maps that are finite in both; a map
    is left out if it is not all zero but its reference is. A value is None if no map counts for it.

    Parameters
    ----------
    maps, reference
        (B, \\*grid) each.
    sites
        (B, \\*sites) bool, the sites of the input that can be hidden. If the grid is as fine as the input,
        only these sites count.
    """
    counts = sites if sites.shape == maps.shape else torch.ones_like(maps, dtype=torch.bool)
    ordered = spearman(*(each.masked_fill(~counts, -torch.inf) for each in (maps, reference)))
    a, b = (each.masked_fill(~counts, 0).double().flatten(1) for each in (maps, reference))
    away = (a - b).norm(dim=1)
    # 0 / 0 is no difference. A reference of zeros gives infinity, which is left out below.
    relative = torch.where(away == 0, 0, away / b.norm(dim=1))
    orders, sizes = (each[each.isfinite()] for each in (ordered, relative))
    rank = (float(orders.mean()), float(orders.min())) if len(orders) else (None, None)
    size = (float(sizes.mean()), float(sizes.max())) if len(sizes) else (None, None)
    return Agreement(*rank, *size)
