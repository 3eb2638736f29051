"""Without boxes and masks: what content does that is as salient in images of other classes.

A region that holds an object makes that object's class wherever it is pasted. If such content of other
classes makes its own class about as often as the exemplars' makes the suspected one, the exemplars' content
may be the object itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.findings.interventions import DONORS, RECIPIENTS
from tasks.findings.seen import Rows, Seen
from tasks.findings.trials import Trials

Bools = NDArray[np.bool_]

_AS_SALIENT = 0.8  # of the exemplars' median share of the map in the region: who counts as a donor
FEWEST = 5  # donors


@dataclass(frozen=True)
class Natural:
    """Transplants of content of other classes.

    Attributes
    ----------
    donors
        How many images of other classes have as much of their map in the region as the exemplars; at most 30
        of them were used. Where ``moved``, how many have it in as many cells, wherever these lie.
    flips
        Share of the transplants after which the donor's own class is predicted; NaN with fewer than 5 donors,
        and with fewer than three classes.
    moved
        Whether the content is that of each donor's most salient cells, because fewer than 5 have as much in
        the region.
    """

    donors: int
    flips: float
    moved: bool = False


def natural(
    trials: Trials, target: int, exemplars: Rows, regions: Tensor, rng: np.random.Generator
) -> Natural:
    """Transplant content of other classes that is as salient as that of the exemplars.

    Each of at most 30 donors gives its content to three images that are neither of its class nor of the
    suspected one.

    Parameters
    ----------
    trials, target, exemplars, regions, rng
        As for :func:`tasks.findings.interventions.transplant`.
    """
    seen = trials.seen
    others = seen.others(target)
    enough = _AS_SALIENT * float(_shares(seen, exemplars, regions).diagonal().median())
    there = _shares(seen, others, regions) >= enough  # (others, exemplars)
    fit = np.flatnonzero(there.any(1).numpy())
    moved = len(fit) < FEWEST
    if moved:
        count = _cells(seen, regions).flatten(1).sum(1).mean().round().clamp(min=1)
        strongest = seen.maps[others].flatten(1).topk(int(count), 1)
        fit = np.flatnonzero((strongest.values.sum(1) >= enough).numpy())
    chosen = rng.permutation(fit)[:RECIPIENTS]
    if moved:
        cells = torch.zeros(len(chosen), seen.maps[0].numel())
        cells = cells.scatter(1, strongest.indices[chosen], 1).unflatten(1, seen.maps.shape[1:])
        places = F.interpolate(cells[:, None], regions.shape[1:], mode="nearest")[:, 0] > 0
    else:
        places = regions[[rng.choice(np.flatnonzero(there[each].numpy())) for each in chosen]]
    flips = _flips(trials, others[chosen], others, places, rng) if len(fit) >= FEWEST else np.nan
    return Natural(len(fit), flips, moved)


def _flips(trials: Trials, donors: Rows, others: Rows, places: Tensor, rng: np.random.Generator) -> float:
    """Share of the transplants that make the donor's own class; NaN where no image may get them."""
    seen = trials.seen
    given = [
        rng.permutation(others[~_of_class(seen, others, seen.classes[donor], seen.labels[donor])])[:DONORS]
        for donor in donors
    ]
    under = np.concatenate(given)
    at = np.repeat(np.arange(len(donors)), [len(rows) for rows in given])
    own_class = torch.from_numpy(seen.classes[donors[at]])
    flipped = trials.swapped(under, donors[at], lambda these: places[at[these]], own_class)[:, 1]
    return float(flipped.mean()) if len(flipped) else np.nan


def _of_class(seen: Seen, rows: Rows, *classes: int) -> Bools:
    """(n,) whether an image is of one of the classes, or taken for one; -1 is no class but an unknown one."""
    known = [each for each in classes if each >= 0]
    return np.isin(seen.classes[rows], known) | np.isin(seen.labels[rows], known)


def _shares(seen: Seen, rows: Rows, regions: Tensor) -> Tensor:
    """(n, E) how much of each map lies in each region."""
    return seen.maps[rows].flatten(1) @ _cells(seen, regions).flatten(1).T


def _cells(seen: Seen, regions: Tensor) -> Tensor:
    """(E, h, w) in [0, 1]: how much of each cell of the maps is in each region."""
    return F.interpolate(regions[:, None].float(), seen.maps.shape[1:], mode="area")[:, 0]
