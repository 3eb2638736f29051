"""Fixed places: where the maps of a class have more than those of other classes, whatever the object does.

A place that is above the threshold is a suspicion and nothing more. It happens in honest networks as well,
since the objects of a class have a shape.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.numerics.randomness import seed_of
from tasks.findings.seen import Seen
from tasks.findings.suspicion import EXEMPLARS, Suspicion, with_neighbours

PERMUTATIONS = 200
_LEVEL = 0.95  # of the permutations' largest values: the threshold


def t_statistics(inside: Tensor, total: Tensor, n: int, count: int) -> Tensor:
    """Welch's t between groups of n numbers and all others, position by position.

    Parameters
    ----------
    inside
        (G, 2 P) float64: for each group the sums of its numbers at P positions, then those of their squares.
    total
        (2 P,) the same of all numbers.
    n, count
        How many numbers a group has, 2 or more, and how many there are, at least 2 more.

    Returns
    -------
    Tensor
        (G, P) float64; 0 where neither a group nor the others vary.
    """
    (mean, spread), (rest, around) = _moments(inside, n), _moments(total - inside, count - n)
    error = (spread / n + around / (count - n)).sqrt()
    known = error > 1e-9 * (mean.abs() + rest.abs())  # an error of rounding would make a large t of nothing
    return torch.where(known, (mean - rest) / torch.where(known, error, 1), 0)


def _moments(sums: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (G, P) of n numbers, from their sums and those of their squares (G, 2 P)."""
    first, second = (sums / n).chunk(2, -1)
    return first, (second - first.square()).clamp(min=0) * n / (n - 1)


def fixed_place(seen: Seen, target: int, size: tuple[int, int]) -> Suspicion | None:
    """The place where the maps of a class have more than all others; None if there is none.

    The threshold is the 95 % quantile of the largest t over the map, of 200 random groups of as many images.
    All cells above it, and those around them, are one region, since a border falls into pieces.

    Parameters
    ----------
    seen
        The maps.
    target
        The class.
    size
        (H, W) of the input.
    """
    rows = seen.rows_of(target)
    flat = seen.maps.flatten(1)
    count = len(flat)
    if len(rows) < 2 or count - len(rows) < 2:
        return None
    rng = np.random.default_rng(seed_of(seen.seed, "places", target))
    drawn = [rng.choice(count, len(rows), replace=False, shuffle=False) for _ in range(PERMUTATIONS)]
    # The class itself first, then the random groups.
    groups = torch.from_numpy(np.stack([rows, *drawn]))
    sums = F.embedding_bag(groups, seen.powers, mode="sum")
    own, *random = t_statistics(sums, seen.total, len(rows), count)
    threshold = torch.quantile(torch.stack(random).amax(1), _LEVEL)
    above = own > threshold
    if not bool(above.any()):
        return None
    within = flat[rows][:, above].sum(1)
    strongest = rows[torch.argsort(within, descending=True, stable=True)[:EXEMPLARS].cpu().numpy()]
    cells = above.view(1, 1, *seen.maps.shape[1:]).float()
    place = F.interpolate(cells, size, mode="nearest")[0] > 0
    region = with_neighbours(place, (cells.shape[2], cells.shape[3]))[0]
    return Suspicion("places", target, strongest, region, len(rows), float(own.max()))
