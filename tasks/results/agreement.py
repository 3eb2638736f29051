"""What lower precision, TF32 or the compiler does to maps, beside those of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.metrics.similarity import spearman

DRIFT = ("rank_correlation", "worst_rank_correlation", "difference", "worst_difference")


def drift(maps: Tensor, reference: Tensor, sites: Tensor) -> dict[str, float | None]:
    """How far raw ``maps`` are from their ``reference``, (B, \\*grid) each: mean and worst of the maps.

    ``rank_correlation`` is Spearman's, of maps that have an order in both; ``difference`` the Euclidean norm
    of what lies between them over that of the reference, of maps that are finite in both and not zero
    throughout in one alone. None where there is no such map.

    Parameters
    ----------
    sites
        (B, \\*sites) bool: which of the input's can be hidden. Of maps as fine as the input, others do not
        count.
    """
    counts = sites if sites.shape == maps.shape else torch.ones_like(maps, dtype=torch.bool)
    ordered = spearman(*(each.masked_fill(~counts, -torch.inf) for each in (maps, reference)))
    a, b = (each.masked_fill(~counts, 0).double().flatten(1) for each in (maps, reference))
    away = (a - b).norm(dim=1)
    relative = torch.where(away == 0, 0, away / b.norm(dim=1))
    orders, sizes = (each[each.isfinite()] for each in (ordered, relative))
    rank = (float(orders.mean()), float(orders.min())) if len(orders) else (None, None)
    size = (float(sizes.mean()), float(sizes.max())) if len(sizes) else (None, None)
    return dict(zip(DRIFT, rank + size, strict=True))
