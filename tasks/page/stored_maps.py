"""The maps of some samples as the page shows them: levels from 0 to 1, or why there is no map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.statuses import STATUSES, Status
from storage.maps import read_rows
from storage.places import is_there
from storage.records import Step, is_finished, read_failure
from storage.run import Run
from tasks.page.picture_data import reduced

Floats = NDArray[np.float32]

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
    raw = read_rows(run.saliency(explainer) / "maps", rows).astype(np.float32)
    statuses = [STATUSES[code] for code in read_rows(run.saliency(explainer) / "status", rows)]
    if run.modality == "text":
        levels, seen, own = _of_texts(run, rows, raw)
    else:
        levels, seen = own_levels(raw)
        own = np.ones_like(raw, bool)
    axes = tuple(range(1, raw.ndim))
    positive = np.maximum(raw, 0)
    low = np.where(own, positive, np.inf).min(axes)
    high = np.where(own, positive, -np.inf).max(axes)
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
        found.append(StoredMap(levels[i], values[0], values[1], values[2], values[3], told))
    return found


def own_levels(raw: Floats) -> tuple[Floats, list[Status]]:
    """What :func:`tasks.metrics.preparation.prepare` makes of maps (B, \\*grid) on their own grid.

    On that grid nothing is interpolated, so that pages need no PyTorch.
    """
    axes = tuple(range(1, raw.ndim))
    finite = np.isfinite(raw).all(axes)
    positive = np.where(_like(np.asarray(finite), raw), np.maximum(raw, 0), np.float32(np.nan))
    low, high = np.asarray(positive.min(axes)), np.asarray(positive.max(axes))
    level = np.asarray(low == high)
    with np.errstate(invalid="ignore"):  # 0 / 0, where all cells are the same
        stretched = (positive - _like(low, raw)) / _like(high - low, raw)
    levels = np.where(_like(level, raw), _like(np.asarray(high > 0), raw), stretched).astype(np.float32)
    kinds = np.select([~finite, level & (high == 0), level], [2, 1, 0], 3)
    names = [Status.CONSTANT, Status.ALL_ZERO, Status.NOT_FINITE, Status.OK]
    return levels, [names[kind] for kind in kinds]


def _of_texts(run: Run, rows: list[int], raw: Floats) -> tuple[Floats, list[Status], NDArray[np.bool_]]:
    """Maps on the tokens of their texts, their statuses, and the cells that have values of their own."""
    import torch  # imported late, because pages of images do without it

    from explainers.models.modality import MODALITIES
    from tasks.metrics.preparation import prepare

    images = [row // run.targets_per_image for row in rows]
    sites = MODALITIES["text"].sites(torch.from_numpy(read_rows(run.inputs, images)))
    levels, seen = prepare(torch.from_numpy(raw), run.input_size, sites)
    # Only a map as fine as the text has values of its own at tokens that cannot be hidden.
    own = sites.numpy() if raw.shape == tuple(sites.shape) else np.ones_like(raw, bool)
    return levels.numpy(), seen, own


def _averaged(levels: Floats, low: Floats, high: Floats, most: int | None) -> tuple[Floats, Floats, Floats]:
    """Average levels (B, \\*grid) to at most ``most`` cells a side, and stretch them again if it was needed.

    Returns
    -------
    levels, bottom, top
        (B, \\*cells), and (B,) the values of the levels 0 and 1, where ``low`` and ``high`` were those of the
        given ones.
    """
    if most is None or max(levels.shape[1:]) <= most:
        return levels, low, high
    import torch  # imported late, because pages of maps of few cells do without it

    means = reduced(torch.from_numpy(levels), most).numpy()
    axes = tuple(range(1, means.ndim))
    least, largest = means.min(axes), means.max(axes)
    with np.errstate(invalid="ignore"):
        stretched = (means - _like(least, means)) / _like(largest - least, means)
    bottom, top = low + least * (high - low), low + largest * (high - low)
    return np.where(_like(largest > least, means), stretched, means), bottom, top


def _like(values: NDArray[Any], maps: Floats) -> NDArray[Any]:
    """Reshape (B,) values to (B, 1, ...)."""
    return values.reshape(-1, *[1] * (maps.ndim - 1))
