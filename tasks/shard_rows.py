"""The maps of a shard, row by row: their classes, seeds and batches, and how a status is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.base import Status
from explainers.numerics.batching import chunks
from explainers.numerics.randomness import seed_of
from storage.run import Run
from storage.samples import read_samples_of_shard

STATUSES = list(Status)  # a status is stored as its index in this list, so the order must not change


def targets_and_seeds(run: Run, shard: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """The class and the seed of every map of a shard, image by image.

    Parameters
    ----------
    purpose
        A word that goes into the seeds. It keeps the random numbers of explainers and metrics apart: with the
        same seeds, the random control would be ranked exactly as the tie-break ranks a constant map.

    Returns
    -------
    targets
        (maps,) int64; -1 if the image has no target.
    seeds
        (maps,) int64; maps of one image share a seed.
    """
    classes, seeds = [], []
    for sample in read_samples_of_shard(run.root, shard):
        targets = list(sample["targets"])
        classes += targets + [-1] * (run.targets_per_image - len(targets))
        # The sample's id, not its row: shards and batches of other sizes give the same maps.
        seeds += [seed_of(run.seed, purpose, sample["sample_id"])] * run.targets_per_image
    return np.array(classes, np.int64), np.array(seeds, np.int64)


def batches(run: Run, targets: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of a shard's maps that have a target, in batches of at most ``run.batch_images`` maps.

    Parameters
    ----------
    targets
        (maps,) int64; -1 if there is no target.
    """
    steps = (np.arange(step.start, step.stop) for step in chunks(len(targets), run.batch_images))
    return [able for rows in steps if len(able := rows[targets[rows] >= 0])]
