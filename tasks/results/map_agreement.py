"""How much the maps of the explainers of a run agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.models.modality import MODALITIES
from storage.maps import read_rows
from storage.run import Run
from tasks.metrics.similarity import centred_ranks
from tasks.results.statistics import Floats

MOST_MAPS = 200
SIDE, LENGTH = 32, 1024  # cells of the common grid at most: per side of an image, and of a series
_CELLS = 1 << 23  # of native maps that are in memory at a time


@dataclass(frozen=True)
class MapAgreement:
    """Spearman's rank correlation between the maps of explainers, averaged over maps.

    Attributes
    ----------
    explainers
        Their names.
    correlation
        (explainers, explainers) in [-1, 1]; NaN where no image has maps of both that have an order.
    maps, there
        How many maps per explainer were compared, evenly spread over the run, and how many there are.
    grid
        The common grid.
    """

    explainers: list[str]
    correlation: Floats
    maps: int
    there: int
    grid: tuple[int, ...]


def map_agreement(run: Run) -> MapAgreement:
    """Compare the maps of all explainers of a run, on at most :data:`MOST_MAPS` maps each.

    As for the metrics, evidence against the class counts as none. Maps are interpolated to the common grid;
    from a finer one, each cell is a mean. The places of a text stay as they are, and those without a token
    that can be hidden do not count.
    """
    there = run.rows * run.targets_per_image
    rows = np.unique(np.linspace(0, there - 1, min(there, MOST_MAPS)).round().astype(np.int64))
    grid = _grid(run)
    sites = torch.ones(len(rows), *grid, dtype=torch.bool)
    if run.modality == "text":
        inputs = torch.from_numpy(read_rows(run.inputs, rows // run.targets_per_image))
        sites = MODALITIES["text"].sites(inputs)
    ranked = torch.stack([centred_ranks(_maps(run, name, rows, grid, sites)) for name in run.explainers], 1)
    unit = ranked / ranked.square().sum(2, keepdim=True).sqrt()
    correlation = (unit @ unit.mT).nanmean(0).clamp(-1, 1).numpy()
    return MapAgreement(list(run.explainers), correlation, len(rows), there, grid)


def _grid(run: Run) -> tuple[int, ...]:
    if run.modality == "text":
        return run.input_size
    most = SIDE if len(run.input_size) == 2 else LENGTH
    return tuple(min(length, most) for length in run.input_size)


def _maps(run: Run, explainer: str, rows: np.ndarray, grid: tuple[int, ...], sites: Tensor) -> Tensor:
    """Return the maps of an explainer on the common grid, (maps, \\*grid); -inf where ``sites`` is False."""
    path = run.saliency(explainer) / "maps"
    at_a_time = max(1, _CELLS // int(np.prod(run.explainers[explainer].grid)))
    parts = []
    for start in range(0, len(rows), at_a_time):
        part = slice(start, start + at_a_time)
        maps, own = torch.from_numpy(read_rows(path, rows[part])).float(), sites[part]
        if maps.shape == own.shape:  # only then has it values where nothing counts, which may be anything
            maps = maps.masked_fill(~own, 0)
        parts.append(_resized(maps, grid).masked_fill(~own, -torch.inf))
    return torch.cat(parts)


def _resized(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the positive part of maps on another grid; maps that are not finite become NaN."""
    finite = maps.isfinite().flatten(1).all(1)
    if maps.shape[1:] == grid:
        resized = maps.relu()
    else:
        size = (1,) * (2 - len(grid)) + grid
        flat = maps.relu().nan_to_num().view(len(maps), 1, *(1,) * (2 - len(grid)), *maps.shape[1:])
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True).view(len(maps), *grid)
    return resized.masked_fill(~finite.view(-1, *(1,) * len(grid)), torch.nan)
