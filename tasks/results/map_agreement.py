"""How much the maps of the explainers of a run agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from explainers.models.modality import MODALITIES
from storage.maps import read_rows
from storage.records import Step
from storage.run import Run
from tasks.metrics.similarity import centred_ranks, flat
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
        inputs = torch.from_numpy(read_rows(run.inputs, (rows // run.targets_per_image).tolist()))
        sites = MODALITIES["text"].sites(inputs)
    done = {step for step in run.finished() if step.stage == "saliency"}
    each = (_maps(run, name, rows, grid, sites, done) for name in run.explainers)
    ranked = torch.stack([centred_ranks(maps) for maps in each], 1)
    unit = ranked / ranked.square().sum(2, keepdim=True).sqrt()
    correlation = (unit @ unit.mT).nanmean(0).clamp(-1, 1).numpy()
    return MapAgreement(list(run.explainers), correlation, len(rows), there, grid)


def _grid(run: Run) -> tuple[int, ...]:
    if run.modality == "text":
        return run.input_size
    most = SIDE if len(run.input_size) == 2 else LENGTH
    return tuple(min(length, most) for length in run.input_size)


def _maps(
    run: Run, explainer: str, rows: NDArray[np.int64], grid: tuple[int, ...], sites: Tensor, done: set[Step]
) -> Tensor:
    """Return the maps of an explainer on the common grid, (maps, \\*grid); -inf where ``sites`` is False.

    Maps of steps that are not done are NaN.
    """
    path = run.saliency(explainer) / "maps"
    found = torch.full((len(rows), *grid), torch.nan)
    per_shard = run.manifest.shard_rows * run.targets_per_image
    there = np.isin(rows // per_shard, [step.shard for step in done if step.explainer == explainer])
    at_a_time = max(1, _CELLS // int(np.prod(run.explainers[explainer].grid)))
    for start in range(0, len(rows), at_a_time):
        part = np.arange(start, min(start + at_a_time, len(rows)))[there[start : start + at_a_time]]
        if not len(part):
            continue
        maps, own = torch.from_numpy(read_rows(path, rows[part].tolist())).float(), sites[part]
        if maps.shape == own.shape:  # only then has it values where nothing counts, which may be anything
            maps = maps.masked_fill(~own, 0)
        found[part] = _resized(maps, grid).masked_fill(~own, -torch.inf)
    return found


def _resized(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the positive part of maps on another grid; maps that are not finite become NaN."""
    finite = maps.isfinite().flatten(1).all(1)
    resized = maps = maps.relu()
    if maps.shape[1:] != grid:
        ones = (1,) * (2 - len(grid))  # interpolation with means needs two axes
        finer = any(cells > length for cells, length in zip(maps.shape[1:], grid, strict=True))
        plane = maps.nan_to_num().view(len(maps), 1, *ones, *maps.shape[1:])
        resized = F.interpolate(plane, ones + grid, mode="bilinear", antialias=finer).view(len(maps), *grid)
        # Rounding would give a flat map an order.
        resized = torch.where(_along(flat(maps), grid), 0, resized)
    return torch.where(_along(finite, grid), resized, torch.nan)


def _along(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Reshape (B,) values so that they broadcast with maps on this grid."""
    return values.view(-1, *(1,) * len(grid))
