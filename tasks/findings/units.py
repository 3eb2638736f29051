"""The units that carry a class: what DD-CAM's kept sets of units say over a whole dataset.

They are a view to look at. What leaving units out does to an image is DD-CAM's certificate, image by image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST_IMAGES = 1000  # of a class whose sets are compared with each other


@dataclass(frozen=True, eq=False)
class ClassUnits:
    """The units of a class.

    Attributes
    ----------
    images
        How many sets of the class count: those that are not empty.
    frequency
        (U,) share of the sets that hold each unit.
    alone
        (U,) share of the sets that are this one unit.
    agreement
        The mean over pairs of images of the intersection of their sets, divided by the union; NaN with fewer
        than two sets.
    """

    images: int
    frequency: Floats
    alone: Floats
    agreement: float


def class_units(kept: Bools, seed: int) -> ClassUnits:
    """Summarise the sets of a class.

    Parameters
    ----------
    kept
        (n, U) which units each image keeps; images without any do not count.
    seed
        Draws the images that are compared if there are more than 1,000.
    """
    sets = kept[kept.any(1)]
    count = len(sets)
    if not count:
        nothing = np.zeros(kept.shape[1])
        return ClassUnits(0, nothing, nothing, float("nan"))
    single = sets[sets.sum(1) == 1]
    return ClassUnits(count, sets.mean(0), single.sum(0) / count, _agreement(sets, seed))


def _agreement(sets: Bools, seed: int) -> float:
    if len(sets) < 2:
        return float("nan")
    if len(sets) > MOST_IMAGES:
        sets = sets[np.random.default_rng(seed).choice(len(sets), MOST_IMAGES, replace=False)]
    own = sets.astype(np.float64)
    both, size = own @ own.T, own.sum(1)
    ratio = both / (size[:, None] + size - both)
    pairs = len(sets) * (len(sets) - 1)
    return float((ratio.sum() - np.trace(ratio)) / pairs)


def information(kept: Bools, classes: Rows) -> Floats:
    """How much each unit tells about the class: mutual information in nats, (U,).

    Parameters
    ----------
    kept
        (N, U) which units each image keeps.
    classes
        (N,) the class of each image.
    """
    _, number = np.unique(classes, return_inverse=True)
    members = np.bincount(number).astype(np.float64)
    held = np.zeros((len(members), kept.shape[1]))
    np.add.at(held, number, kept)
    total = len(classes)
    found = np.zeros(kept.shape[1])
    for joint, marginal in ((held, held.sum(0)), (members[:, None] - held, total - held.sum(0))):
        expected = members[:, None] * marginal / total
        ratio = np.divide(joint, expected, out=np.ones_like(joint), where=joint > 0)
        found += (joint * np.log(ratio)).sum(0) / total
    return found
