"""Maps that another program made, as one shard of an explainer needs them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.numerics.batching import chunks
from storage.files import UnreadableError
from storage.given_maps import GivenMaps, as_map, channel_axis, in_view, open_unchanged
from storage.run import Run
from storage.samples import read_samples_of_shard
from tasks.shard_rows import NO_TARGET

logger = logging.getLogger(__name__)

_NO_MAP = "there is no map of the sample"


def given_maps(
    run: Run, name: str, shard: int, targets: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the maps of a shard for an explainer that needs given maps.

    Parameters
    ----------
    name
        The explainer, as the run calls it.
    targets
        (maps,) the class of each map of the shard, negative if there is none.

    Returns
    -------
    maps
        (maps, \\*grid), NaN where there is none.
    targets
        As given, and ``NO_TARGET`` where the map is missing or is no map of the class. The log says why.

    Raises
    ------
    storage.files.UnreadableError
        If the files have changed since the job was planned.
    """
    entry = run.explainers[name]
    path, sha256 = Path(entry.parameters["path"]), entry.files["path"]
    given = open_unchanged(path, sha256)
    k, (first, _), samples = run.targets_per_image, run.bounds(shard), read_samples_of_shard(run.root, shard)
    maps = np.full((len(targets), *entry.grid), np.nan, np.float32)
    able, reasons = targets.copy(), Counter[str]()
    for rows in chunks(len(samples), run.batch_images):
        wanted = [row for row in range(rows.start, rows.stop) if (targets[row * k : row * k + k] >= 0).any()]
        places = {row: given.place(first + row, samples[row]["sample_id"]) for row in wanted}
        known = {row: place for row, place in places.items() if place is not None}
        found = dict(zip(known, given.entries.read(list(known.values())), strict=True)) if known else {}
        for row in wanted:
            for each in (each for each in range(row * k, row * k + k) if targets[each] >= 0):
                try:
                    read = found.get(row, _NO_MAP)
                    if isinstance(read, str):
                        raise UnreadableError(read)
                    maps[each] = _map(run, name, given, known[row], read, int(targets[each]), samples[row])
                except UnreadableError as error:
                    able[each] = NO_TARGET
                    reasons[str(error)] += 1
    open_unchanged(path, sha256)  # so that nothing that changed while it was read is stored
    for reason, count in reasons.most_common():
        logger.warning("%s: %d maps of shard %d failed: %s", name, count, shard, reason)
    return maps, able


def _map(
    run: Run,
    name: str,
    given: GivenMaps,
    place: int,
    read: NDArray[Any],
    target: int,
    sample: dict[str, Any],
) -> NDArray[np.float32]:
    """Return the map of a class among those of a sample, on the run's grid."""
    entry = run.explainers[name]
    whole = entry.parameters["covers"] == "image"
    size = (sample["height"], sample["width"])
    try:
        axis = channel_axis(read.shape, len(entry.grid), given.several, size if whole else entry.grid)
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    values = as_map(read, axis)
    if given.targets is not None:
        stated = given.targets[place]
        found = np.flatnonzero(np.atleast_1d(stated) == target)
        if not len(found):
            raise UnreadableError("its map is not of the class that is explained")
        values = values[found[0]] if given.several else values
    wanted = size if whole else entry.grid
    if values.shape != tuple(wanted):
        raise UnreadableError(f"its map is {values.shape}, and {tuple(wanted)} is wanted")
    return in_view(values, run.geometry) if whole else values
