"""The maps of some samples as the page shows them: levels from 0 to 1, or why there is no map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from explainers.base import Status
from explainers.models.modality import MODALITIES
from storage.maps import read_rows
from storage.records import Step, failures
from storage.run import Run
from tasks.metrics.preparation import prepare
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
        (\\*grid) float32 in [0, 1], prepared as for the metrics but on the map's own grid; for texts (T,),
        -inf where a token cannot be hidden. None if there is no map.
    low, high
        The range of the map after rectification, in the explainer's own units: levels 0 and 1. They are the
        same for a constant map.
    told
        What to say about the map, e.g. that it is zero everywhere; why there is none, without levels.
    """

    levels: NDArray[np.float32] | None
    low: float = 0.0
    high: float = 0.0
    told: str = ""


def stored_maps(run: Run, explainer: str, rows: Sequence[int]) -> list[StoredMap]:
    """Read the maps of an explainer at these rows of maps, prepare them, and explain those that are missing.

    Every shard's file is read once, and all maps are prepared together.
    """
    each = run.manifest.shard_rows * run.targets_per_image
    done, failed = run.finished(), failures(run.root)
    steps = [Step("saliency", row // each, explainer) for row in rows]
    there = [row for row, step in zip(rows, steps, strict=True) if step in done]
    found = iter(_read(run, explainer, there)) if there else iter(())
    return [
        next(found)
        if step in done
        else StoredMap(None, told=f"failed: {failed[step].error}" if step in failed else "not computed yet")
        for step in steps
    ]


def _read(run: Run, explainer: str, rows: list[int]) -> list[StoredMap]:
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
    low = positive.masked_fill(away, torch.inf).amin(1).tolist()
    high = positive.masked_fill(away, -torch.inf).amax(1).tolist()
    found = []
    for i, status in enumerate(statuses):
        if status in _NO_MAP or seen[i] == Status.NOT_FINITE:
            found.append(StoredMap(None, told=_NO_MAP[status if status in _NO_MAP else Status.NOT_FINITE]))
        else:
            told = (
                NO_POSITIVE if seen[i] == Status.ALL_ZERO and status == Status.OK else _TOLD.get(seen[i], "")
            )
            found.append(StoredMap(levels[i].numpy(), low[i], high[i], told))
    return found
