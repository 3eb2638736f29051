"""Off the object: classes that are right for the wrong reason, whose maps lie beside the object too often.

Thin objects are suspected wrongly, and the interventions reject them.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import false_discovery_control, fisher_exact, norm
from torch import Tensor

from tasks.findings.seen import Rows, Seen, enlarged
from tasks.findings.suspicion import EXEMPLARS, Suspicion, salient, with_neighbours

_QUANTILE = 0.05  # of the shares of the other classes: what is little
_RATE = 0.05  # of false discoveries over the classes
_MEAN_OF = 200  # images in the mean map of a class, at most


def little_on_object(seen: Seen, target: int) -> tuple[Rows, float]:
    """Which images of a class have less of their map on the object than is usual elsewhere.

    Parameters
    ----------
    seen
        The maps, with shares.
    target
        The class.

    Returns
    -------
    rows
        (n,) images of the class whose share is below the 5 % quantile of the other classes.
    p_value
        Fisher's exact test, one-sided: that there are no more of them than in the other classes. 1 where the
        class or the others have no shares.
    """
    assert seen.shares is not None
    known = ~np.isnan(seen.shares)
    own = np.flatnonzero(known & (seen.classes == target))
    rest = seen.shares[known & (seen.classes != target)]
    if not len(own) or not len(rest):
        return own[:0], 1.0
    limit = np.quantile(rest, _QUANTILE)
    rows, others = own[seen.shares[own] < limit], int((rest < limit).sum())
    table = [[len(rows), len(own) - len(rows)], [others, len(rest) - others]]
    return rows, float(fisher_exact(table, alternative="greater").pvalue)


def suspected_classes(seen: Seen, classes: Rows) -> dict[int, tuple[Rows, float]]:
    """The classes with more images off the object than the others, at a false discovery rate of 5 %.

    Parameters
    ----------
    seen
        The maps, with shares.
    classes
        (K,) the classes to compare; all of a run, since the correction is over them.

    Returns
    -------
    dict
        For each suspected class the images, as :func:`little_on_object` returns them, and the strength: the
        normal quantile of the p-value.
    """
    found = {int(each): little_on_object(seen, int(each)) for each in classes}
    if not found:
        return {}
    adjusted = false_discovery_control([p for _, p in found.values()])
    return {
        each: (rows, float(norm.isf(max(p, np.finfo(float).tiny))))
        for (each, (rows, p)), q in zip(found.items(), adjusted, strict=True)
        if q < _RATE
    }


def off_object(
    seen: Seen, target: int, rows: Rows, strength: float, size: tuple[int, int]
) -> list[Suspicion]:
    """The two regions that may be the wrong reason of a class.

    One is each image's own salient part off the object, which finds cues at random places. The other is the
    class's mean map off the object, which finds textures and borders.

    Parameters
    ----------
    seen
        The maps, with objects.
    target, rows, strength
        The class, and what :func:`suspected_classes` returned for it.
    size
        (H, W) of the input.
    """
    assert seen.shares is not None
    order = rows[np.argsort(seen.shares[rows], kind="stable")]
    exemplars = order[:EXEMPLARS]
    own = salient(seen.maps[exemplars], size, seen.grown_objects(exemplars))
    mean = _mean_off_object(seen, order[:_MEAN_OF], size)
    return [
        Suspicion("off_object_own", target, exemplars, own, len(rows), strength),
        Suspicion("off_object_mean", target, exemplars, mean, len(rows), strength),
    ]


def _mean_off_object(seen: Seen, rows: Rows, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: where the mean of the maps, taken over the images without an object there, is salient."""
    objects = seen.grown_objects(rows)
    assert objects is not None
    fine = torch.where(objects, 0, enlarged(seen.maps[rows], size)).sum(0)
    mean = fine / (~objects).sum(0).clamp(min=1)
    found = (mean >= mean.max() / 2) & (mean > 0)
    return with_neighbours(found[None], (seen.maps.shape[1], seen.maps.shape[2]))[0]
