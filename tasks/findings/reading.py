"""In how many images of a class the network reads a region, as far as the maps say it."""

from __future__ import annotations

import numpy as np
from torch.nn import functional as F

from tasks.findings.decision import Outcome
from tasks.findings.seen import Seen

_LEVEL = 0.95  # quantile of the other classes


def reading(seen: Seen, outcome: Outcome) -> int:
    """Count the images of the class whose maps are in the region as those of the exemplars are.

    They have at least half as much of their map there as the exemplars have in the median, and more than 95 %
    of the images of other classes have. Where each image has a region of its own, the suspicion says how many
    images there are.
    """
    suspicion = outcome.suspicion
    if suspicion.view != "places":
        return suspicion.images
    region = suspicion.region if outcome.refined is None else outcome.refined
    grid = (seen.maps.shape[1], seen.maps.shape[2])
    cells = F.adaptive_avg_pool2d(region[None].float(), grid)[0]
    inside = (seen.maps.cpu() * cells).sum((1, 2))
    own, others = inside[seen.rows_of(suspicion.target)], inside[seen.others(suspicion.target)]
    if not len(others):
        return suspicion.images
    usual = np.quantile(others.numpy(), _LEVEL)  # that of PyTorch takes 16 million values at most
    least = float(inside[suspicion.exemplars].median()) / 2
    return int(((own > float(usual)) & (own >= least)).sum())
