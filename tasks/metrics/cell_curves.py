"""MoXI's insertion and deletion curves: accuracy as an image's cells are shown or hidden by saliency.

Sumiyasu, Kawamoto and Kera, "Identifying Important Group of Pixels using Interactions", CVPR 2024,
arXiv 2401.03785.
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
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier


class CellCurvesParameters(Parameters):
    """Parameters of the cell curves. ``grid`` and ``fill`` are those of the explainer ``moxi``."""

    grid: int | None = Field(
        default=None,
        ge=1,
        le=128,
        description="cells per side; by default a vision transformer's own patches, and 14 for other "
        "networks",
    )
    steps: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="number of steps: after step k, ceil(k n / steps) of n cells have changed; by default "
        "one cell per step, as in the paper, which takes about 2 n forward passes per image",
    )
    fill: ImageFill | None = Field(
        default=None,
        description="what absent cells show; by default a vision transformer drops their tokens, and other "
        "networks see the mean",
    )


@register
class CellCurves:
    """Areas under curves over an image's cells, which are ranked by the mean of the map in each cell.

    The curve of ``cell_insertion_accuracy`` says whether the target is the prediction when the first cells
    alone are shown, for more and more cells; that of ``cell_deletion_accuracy`` says the same when the first
    cells are hidden. The means of these curves over images whose prediction is the target are the paper's
    curves. ``cell_insertion_probability`` and ``cell_deletion_probability`` are the same for the target's
    probability. Areas are computed by trapezoids over the share of cells, from 0 to 1.

    Only the order of the cells' means counts. Cells with equal means are in the random order of the image's
    seed; for a flat map, these are all cells.
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

    @staticmethod
    def axes(column: str, parameters: CellCurvesParameters) -> Axes:  # noqa: ARG004
        _, way, what = column.split("_")
        shown = "shown" if way == "insertion" else "hidden"
        told = {"accuracy": "share with class predicted", "probability": "probability of the class"}
        return Axes(f"share of cells {shown}", told[what])

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a curve has one point before the first step and one after each: steps + 1 points."""
        present = self._sets(ranks(means(maps, self.cells.grid), batch.seeds))
        game = self.cells.game(Batch(batch.inputs, batch.targets, batch.seeds, None, batch.forwards))
        B, sets = present.shape[:2]
        images = torch.arange(B, device=maps.device).repeat_interleave(sets)
        values = game.values(images, present.flatten(0, 1)).unflatten(0, (B, sets)).float()
        values[unreadable(maps)] = torch.nan
        inserted = values[:, : self.steps + 1]
        # Deletion goes from all cells to none: both ends are known from insertion, and take no further pass.
        deleted = torch.cat([inserted[:, -1:], values[:, self.steps + 1 :], inserted[:, :1]], 1)
        both = torch.stack([inserted, deleted], 1)  # (B, 2, points, 2)
        curves = [both[:, way, :, what] for what in (1, 0) for way in (0, 1)]
        names = [column.name for column in self.columns()]
        areas = [torch.trapezoid(curve, dim=1) / self.steps for curve in curves]
        return Scores(dict(zip(names, areas, strict=True)), dict(zip(names, curves, strict=True)))

    def _sets(self, order: Tensor) -> Tensor:
        """Return the cells to show, (B, 2 steps, n) bool, from (B, n) ranks.

        The first steps + 1 sets are those of insertion. The others are those of deletion, without its ends.
        """
        step = torch.arange(self.steps + 1, device=order.device)
        counts = -(-step * order.shape[1] // self.steps)[:, None]
        return torch.cat([order[:, None] < counts, order[:, None] >= counts[1:-1]], 1)


def means(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average (B, H, W) maps in each cell, to (B, h, w) float32.

    Sums are in float64, so that cells with equal values tie after rounding to float32.
    """
    rows, columns = (
        _members(cells, size).to(maps.device) for cells, size in zip(grid, maps.shape[1:], strict=True)
    )
    return (rows @ maps.double() @ columns.T).float()


def _members(cells: int, size: int) -> Tensor:
    """Return each pixel's weight in the mean of its cell, along one axis: (cells, size) float64.

    A pixel belongs to the cell that nearest-neighbour upsampling draws there.
    """
    drawn = F.interpolate(torch.arange(cells)[None, None].double(), size)[0, 0].long()
    members = F.one_hot(drawn, cells).double().T
    return members / members.sum(1, keepdim=True)
