"""The maps of a shard, row by row: their classes, seeds and batches, and how a status is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.numerics.batching import chunks
from explainers.numerics.randomness import seed_of
from storage.run import Run
from storage.samples import read_samples_of_shard
from tasks.prefetch import prefetched
from tasks.shard_reader import ShardReader

NO_TARGET, NO_LABEL = -1, -2  # in place of a class: the image failed; it has fewer labels than others


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
        (maps,) int64; ``NO_TARGET`` if the image failed, ``NO_LABEL`` if it has no further label.
    seeds
        (maps,) int64; maps of one image share a seed.
    """
    classes, seeds = [], []
    for sample in read_samples_of_shard(run.root, shard):
        targets = list(sample["targets"])
        nothing = NO_LABEL if run.explains_labels and sample["status"] == "ok" else NO_TARGET
        classes += targets + [nothing] * (run.targets_per_image - len(targets))
        # The sample's id, not its row: shards and batches of other sizes give the same maps.
        seeds += [seed_of(run.seed, purpose, sample["sample_id"])] * run.targets_per_image
    return np.array(classes, np.int64), np.array(seeds, np.int64)


def batches(
    run: Run,
    shard: int,
    of_images: Mapping[str, Path],
    of_maps: Mapping[str, NDArray[Any]],
    device: torch.device,
) -> Iterator[tuple[NDArray[Any], dict[str, Tensor]]]:
    """The maps of a shard that have a target, in batches of at most ``run.batch_images``, read ahead.

    Parameters
    ----------
    of_images
        Arrays of the run with one row per image, by name.
    of_maps
        Arrays with one row per map of the shard, by name; among them ``targets``, negative if there is none.
    device
        Where the tensors go.

    Yields
    ------
    rows
        (b,) ascending, the rows of the batch among the shard's maps.
    values
        For each name, of both kinds, a tensor with one row per map of the batch.
    """
    readers = {name: ShardReader(run, array, shard) for name, array in of_images.items()}
    targets = of_maps["targets"]

    def read(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        images = rows // run.targets_per_image
        stored = {name: reader.rows(images) for name, reader in readers.items()}
        return stored | {name: values[rows] for name, values in of_maps.items()}

    steps = (np.arange(step.start, step.stop) for step in chunks(len(targets), run.batch_images))
    able = [rows for step in steps if len(rows := step[targets[step] >= 0])]
    return prefetched(able, read, device)
