"""Without boxes and masks: what content does that other classes' maps light up at the same place.

A region that holds an object makes that object's class wherever it is pasted. If content of other classes at
this place makes its own class about as often as the exemplars' makes the suspected one, the exemplars'
content may be the object itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.findings.interventions import DONORS, RECIPIENTS
from tasks.findings.seen import Rows, Seen
from tasks.findings.trials import Trials

_AS_SALIENT = 0.8  # of the exemplars' median share of the map in the region: who counts as a donor
FEWEST = 5  # donors


@dataclass(frozen=True)
class Natural:
    """Transplants of content of other classes.

    Attributes
    ----------
    donors
        How many images of other classes have as much of their map at the place as the exemplars; at most 30
        of them were used.
    flips
        Share of the transplants after which the donor's own class is predicted; NaN with fewer than 5 donors.
    """

    donors: int
    flips: float


def natural(
    trials: Trials, target: int, exemplars: Rows, regions: Tensor, rng: np.random.Generator
) -> Natural:
    """Transplant content of other classes that is as salient at the place as that of the exemplars.

    Each of at most 30 donors gives its content to three images that are neither of its class nor of the
    suspected one.

    Parameters
    ----------
    trials, target, exemplars, regions, rng
        As for :func:`tasks.findings.interventions.transplant`.
    """
    seen = trials.seen
    others = seen.others(target)
    there, own = _shares(seen, others, regions), _shares(seen, exemplars, regions).diagonal()
    salient = there >= _AS_SALIENT * float(own.median())  # (others, exemplars)
    fit = np.flatnonzero(salient.any(1).numpy())
    if len(fit) < FEWEST:
        return Natural(len(fit), np.nan)
    under, over, place = [], [], []
    for number in rng.permutation(fit)[:RECIPIENTS]:
        donor = others[number]
        classes = (seen.classes[donor], seen.labels[donor])
        apart = others[~np.isin(seen.classes[others], classes) & ~np.isin(seen.labels[others], classes)]
        recipients = rng.permutation(apart)[:DONORS]
        under.append(recipients)
        over.append(np.repeat(donor, len(recipients)))
        place.append(rng.choice(np.flatnonzero(salient[number].numpy()), len(recipients)))
    rows, donors, at = (np.concatenate(parts) for parts in (under, over, place))
    own_class = torch.from_numpy(seen.classes[donors])
    flipped = trials.swapped(rows, donors, lambda these: regions[at[these]], own_class)[:, 1]
    return Natural(len(fit), float(flipped.mean()) if len(flipped) else np.nan)


def _shares(seen: Seen, rows: Rows, regions: Tensor) -> Tensor:
    """(n, E) how much of each map lies in each region."""
    maps = seen.maps[rows]
    cells = F.interpolate(regions[:, None].float(), maps.shape[1:], mode="area")[:, 0]
    return maps.flatten(1) @ cells.flatten(1).T
