"""Maps that another program made, as one shard of an explainer needs them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

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
_MOST_REASONS = 20  # that a shard's record holds; reasons may hold what is wrong with one file


class Given(NamedTuple):
    """The given maps of a shard.

    Attributes
    ----------
    maps
        (maps, \\*grid) float32, NaN where there is none.
    targets
        (maps,) the class of each map, ``NO_TARGET`` where there is none of the class that is explained.
    reasons
        Why maps are not there, each reason with the number of maps, the most frequent ones.
    """

    maps: NDArray[np.float32]
    targets: NDArray[np.int64]
    reasons: dict[str, int]


def given_maps(run: Run, name: str, shard: int, targets: NDArray[np.int64]) -> Given:
    """Read the maps of a shard for an explainer that needs given maps.

    Parameters
    ----------
    name
        The explainer, as the run calls it.
    targets
        (maps,) the class of each map of the shard, negative if there is none.

    Raises
    ------
    storage.files.UnreadableError
        If the files have changed since the job was planned.
    """
    entry = run.explainers[name]
    k, first, samples = run.targets_per_image, run.bounds(shard)[0], read_samples_of_shard(run.root, shard)
    names = [(first + row, sample["sample_id"]) for row, sample in enumerate(samples)]
    path = Path(entry.parameters["path"])
    snapshot = open_unchanged(path, entry.files["path"], names)
    given = snapshot.given
    places = [given.place(*each) for each in names]
    maps = np.full((len(targets), *entry.grid), np.nan, np.float32)
    able, reasons = targets.copy(), Counter[str]()
    for rows in chunks(len(samples), run.batch_images):
        wanted = [row for row in range(rows.start, rows.stop) if (targets[row * k : row * k + k] >= 0).any()]
        entries = _entries(given, {row: places[row] for row in wanted})
        for row in wanted:
            for each in (each for each in range(row * k, row * k + k) if targets[each] >= 0):
                try:
                    maps[each] = _map(run, name, given, entries[row], int(targets[each]), samples[row])
                except UnreadableError as error:
                    able[each] = NO_TARGET
                    reasons[str(error)] += 1
    if not snapshot.lasts([place for place in places if place is not None]):
        raise UnreadableError(f"{path} changed while it was read; run the job again")
    for reason, count in reasons.most_common(_MOST_REASONS):
        logger.warning("%s: %d maps of shard %d failed: %s", name, count, shard, reason)
    return Given(maps, able, dict(reasons.most_common(_MOST_REASONS)))


class _Entry(NamedTuple):
    """What the files hold of a sample: which entry it is, and its values or why there are none."""

    place: int
    read: NDArray[Any] | str


def _entries(given: GivenMaps, places: dict[int, int | None]) -> dict[int, _Entry]:
    """Read the entries of some rows of a shard."""
    known = {row: place for row, place in places.items() if place is not None}
    read = given.entries.read(list(known.values())) if known else []
    found = {row: _Entry(known[row], values) for row, values in zip(known, read, strict=True)}
    return {row: found.get(row, _Entry(-1, _NO_MAP)) for row in places}


def _map(
    run: Run, name: str, given: GivenMaps, entry: _Entry, target: int, sample: dict[str, Any]
) -> NDArray[np.float32]:
    """Return the map of a class among those of a sample, on the run's grid."""
    if isinstance(entry.read, str):
        raise UnreadableError(entry.read)
    about = run.explainers[name]
    whole = about.parameters["covers"] == "image"
    wanted = (sample["height"], sample["width"]) if whole else tuple(about.grid)
    try:
        axis = channel_axis(entry.read.shape, len(wanted), given.several, wanted)
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    values = as_map(entry.read, axis)
    if given.targets is not None:
        found = np.flatnonzero(np.atleast_1d(given.targets[entry.place]) == target)
        if not len(found):
            raise UnreadableError("the map is not of the class that is explained")
        values = values[found[0]] if given.several else values
    if values.shape != wanted:
        has, wants = ("x".join(map(str, shape)) for shape in (values.shape, wanted))
        raise UnreadableError(f"the map is {has}, and {'its image is' if whole else 'others are'} {wants}")
    return in_view(values, run.geometry) if whole else values
