"""Accuracy while an image's cells are shown, or hidden, in order of saliency.

Sumiyasu, Kawamoto and Kera, "Identifying Important Group of Pixels using Interactions", CVPR 2024,
arXiv 2401.03785, whose insertion and deletion curves these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from explainers.base import Batch, Parameters
from explainers.models.modality import ImageFill
from explainers.probes.games import CellParameters, Cells
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier


class CellCurvesParameters(Parameters):
    """``grid`` and ``fill`` are those of the explainer ``moxi``.

    By default cells are the patches of a vision transformer, whose absent tokens are dropped, and of other
    networks 14 a side, absent ones showing the mean. After step k of ``steps`` ceil(k n / steps) of n cells
    have changed; by default a step is one cell, as in the paper: about 2 n forward passes an image.
    """

    grid: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=2)
    fill: ImageFill | None = None


@register
class CellCurves:
    """Areas under curves of an image's cells, ranked by the mean of the map in each.

    ``cell_insertion_accuracy``: whether the target is the prediction with the first cells alone, as ever more
    are shown; ``cell_deletion_accuracy``: without the first cells. Their means over images are the paper's
    curves, over images whose prediction is the target. ``cell_insertion_probability`` and
    ``cell_deletion_probability`` are the same for the target's probability. Curves have a point before the
    first step and one after each; areas are trapezoids over shares of cells, from 0 to 1.

    Only the order of the cells' means counts; equal ones are in the order of the image's seed, and so are all
    of a flat map.
    """

    name: ClassVar[str] = "cell_curves"
    title: ClassVar[str] = "Accuracy as salient cells are shown and hidden (MoXI, Sumiyasu et al. 2024)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[Parameters]] = CellCurvesParameters

    def __init__(self, classifier: Classifier, parameters: CellCurvesParameters) -> None:
        own = CellParameters(grid=parameters.grid, fill=parameters.fill, reward="confidence")
        self.cells = Cells(classifier, own)
        self.fill = parameters.fill or "mean"
        self.steps = min(parameters.steps or self.cells.count, self.cells.count)

    def columns(self) -> list[Column]:
        dropped = self.cells.encode is not None
        fill = "nothing: tokens of absent cells are dropped" if dropped else f"cells replaced by {self.fill}"
        return [
            Column(f"cell_{way}_{what}", 0.0, 1.0, better, fill)
            for what in ("accuracy", "probability")
            for way, better in (("insertion", "higher"), ("deletion", "lower"))
        ]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps; maps of NaN have values and curves of NaN."""
        present = self._sets(ranks(means(maps, self.cells.grid), batch.seeds))
        game = self.cells.game(Batch(batch.inputs, batch.targets, batch.seeds, None, batch.forwards))
        B, sets = present.shape[:2]
        images = torch.arange(B, device=maps.device).repeat_interleave(sets)
        values = game.values(images, present.flatten(0, 1)).unflatten(0, (B, sets)).float()
        values[unreadable(maps)] = torch.nan
        inserted = values[:, : self.steps + 1]
        # All cells, then ever fewer, then none: both ends are those of insertion.
        deleted = torch.cat([inserted[:, -1:], values[:, self.steps + 1 :], inserted[:, :1]], 1)
        both = torch.stack([inserted, deleted], 1)  # (B, 2, points, 2)
        curves = [both[:, way, :, what] for what in (1, 0) for way in (0, 1)]
        names = [column.name for column in self.columns()]
        areas = [torch.trapezoid(curve, dim=1) / self.steps for curve in curves]
        return Scores(dict(zip(names, areas, strict=True)), dict(zip(names, curves, strict=True)))

    def _sets(self, order: Tensor) -> Tensor:
        """(B, 2 steps, n) bool: cells to show, from (B, n) ranks; ever more of them, then ever fewer."""
        step = torch.arange(self.steps + 1, device=order.device)
        counts = -(-step * order.shape[1] // self.steps)[:, None]
        return torch.cat([order[:, None] < counts, order[:, None] >= counts[1:-1]], 1)


def means(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, w) float32 mean of (B, H, W) maps in each cell; summed in double, so that equal cells tie."""
    rows, columns = (
        _members(cells, size).to(maps.device) for cells, size in zip(grid, maps.shape[1:], strict=True)
    )
    return (rows @ maps.double() @ columns.T).float()


def _members(cells: int, size: int) -> Tensor:
    """(cells, size) float64: each pixel's weight, along one axis, in the mean of the cell it is drawn in."""
    drawn = F.interpolate(torch.arange(cells)[None, None].double(), size)[0, 0].long()
    members = F.one_hot(drawn, cells).double().T
    return members / members.sum(1, keepdim=True)
