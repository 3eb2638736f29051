"""The maps of some samples as the page shows them: levels from 0 to 1, or why there is no map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.base import Status
from explainers.models.modality import MODALITIES
from storage.maps import read_rows
from storage.places import is_there
from storage.records import Step, is_finished, read_failure
from storage.run import Run
from tasks.metrics.preparation import prepare
from tasks.page.picture_data import reduced
from tasks.shard_rows import STATUSES

_NO_MAP = {
    Status.FAILED: "the method cannot be applied to this input",
    Status.NOT_FINITE: "values that are no finite numbers",
    Status.NO_LABEL: "the input has no such label",
}
_TOLD = {Status.ALL_ZERO: "zero everywhere", Status.CONSTANT: "the same everywhere"}
NO_POSITIVE = "no positive value"  # of a map that is all negative: as metrics see it, it is zero


@dataclass(frozen=True, eq=False)
class StoredMap:
    """One map.

    Attributes
    ----------
    levels
        (\\*cells) float32 in [0, 1], prepared as for the metrics but on the map's own grid, or a coarser one;
        for texts (T,), -inf where a token cannot be hidden. None if there is no map.
    low, high
        The range of the map after rectification, in the explainer's own units.
    bottom, top
        The values of the levels 0 and 1, in the same units: ``low`` and ``high``, unless cells were averaged.
        They are the same if all cells are.
    told
        What to say about the map, e.g. that it is zero everywhere; why there is none, without levels.
    """

    levels: NDArray[np.float32] | None
    low: float = 0.0
    high: float = 0.0
    bottom: float = 0.0
    top: float = 0.0
    told: str = ""


def stored_maps(run: Run, explainer: str, rows: Sequence[int], most: int | None = None) -> list[StoredMap]:
    """Read the maps of an explainer at these rows of maps, prepare them, and explain those that are missing.

    Every shard's file is read once, and all maps are prepared together.

    Parameters
    ----------
    most
        The most cells along a side. A finer map is averaged over cells, and the means are stretched to [0, 1]
        again, since single peaks would leave little of them. None keeps every map's grid.
    """
    each = run.manifest.shard_rows * run.targets_per_image
    steps = [Step("saliency", row // each, explainer) for row in rows]
    missing = {step: _why_missing(run, step) for step in set(steps) if not is_finished(run.root, step)}
    there = [row for row, step in zip(rows, steps, strict=True) if step not in missing]
    found = iter(_read(run, explainer, there, most) if there else ())
    return [StoredMap(None, told=missing[step]) if step in missing else next(found) for step in steps]


def _why_missing(run: Run, step: Step) -> str:
    """Why a step is not finished."""
    if not is_there(run.root / step.failure_path):
        return "not computed yet"
    return f"failed: {read_failure(run.root, step).error}"


def _read(run: Run, explainer: str, rows: list[int], most: int | None) -> list[StoredMap]:
    raw = torch.from_numpy(read_rows(run.saliency(explainer) / "maps", rows)).float()
    statuses = [STATUSES[code] for code in read_rows(run.saliency(explainer) / "status", rows)]
    if run.modality == "text":
        images = [row // run.targets_per_image for row in rows]
        sites = MODALITIES["text"].sites(torch.from_numpy(read_rows(run.inputs, images)))
        levels, seen = prepare(raw, run.input_size, sites)
        # Only a map as fine as the text has values of its own at tokens that cannot be hidden.
        own = sites if raw.shape == sites.shape else torch.ones_like(raw, dtype=torch.bool)
    else:
        levels, seen = prepare(raw, tuple(raw.shape[1:]))
        own = torch.ones_like(raw, dtype=torch.bool)
    positive, away = raw.relu().flatten(1), ~own.flatten(1)
    low, high = positive.masked_fill(away, torch.inf).amin(1), positive.masked_fill(away, -torch.inf).amax(1)
    levels, bottom, top = _averaged(levels, low, high, most)
    found = []
    for i, (status, as_scored) in enumerate(zip(statuses, seen, strict=True)):
        if status in _NO_MAP or as_scored == Status.NOT_FINITE:
            found.append(StoredMap(None, told=_NO_MAP.get(status, _NO_MAP[Status.NOT_FINITE])))
            continue
        if not own[i].any():
            found.append(StoredMap(None, told="no token of the text can be hidden"))
            continue
        negative = as_scored == Status.ALL_ZERO and status != Status.ALL_ZERO
        told = NO_POSITIVE if negative else _TOLD.get(as_scored, "")
        values = [float(each[i]) for each in (low, high, bottom, top)]
        found.append(StoredMap(levels[i].numpy(), values[0], values[1], values[2], values[3], told))
    return found


def _averaged(levels: Tensor, low: Tensor, high: Tensor, most: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Average levels (B, \\*grid) to at most ``most`` cells a side, and stretch them again if it was needed.

    Returns
    -------
    levels, bottom, top
        (B, \\*cells), and (B,) the values of the levels 0 and 1, where ``low`` and ``high`` were those of the
        given ones.
    """
    means = levels if most is None else reduced(levels, most)
    if means.shape == levels.shape:
        return levels, low, high
    least, largest = means.flatten(1).amin(1), means.flatten(1).amax(1)
    stretched = (means - _like(least, means)) / _like(largest - least, means)
    bottom, top = low + least * (high - low), low + largest * (high - low)
    return torch.where(_like(largest > least, means), stretched, means), bottom, top


def _like(values: Tensor, maps: Tensor) -> Tensor:
    """Reshape (B,) values to (B, 1, ...)."""
    return values.view(-1, *[1] * (maps.ndim - 1))
