"""Localisation against boxes: the pointing game and the energy-based pointing game.

Boxes are read as sets of pixels: those whose centre (x + 0.5, y + 0.5) lies in [xmin, xmax) x [ymin, ymax).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class PointingGameParameters(Parameters):
    """Parameters of the pointing game."""

    tolerance: float = Field(
        default=0.0,
        ge=0,
        le=10_000,
        description="in pixels of the input: a miss by less than this counts as a hit; TorchRay takes 15 for "
        "short sides of 224",
    )


@register
class PointingGame:
    """A hit (1) if the most salient pixel lies in one of the image's boxes, and a miss (0) if it does not."""

    name: ClassVar[str] = "pointing_game"
    title: ClassVar[str] = "Whether the most salient pixel lies in a box (Zhang et al. 2016)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.BOXES})
    Parameters: ClassVar[type[Parameters]] = PointingGameParameters

    def __init__(self, classifier: BlackBox, parameters: PointingGameParameters) -> None:  # noqa: ARG002
        self.tolerance = parameters.tolerance

    def columns(self) -> list[Column]:
        return [
            Column("pointing_game", 0.0, 1.0, "higher"),
            Column("pointing_game_center", 0.0, 1.0, None),
        ]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; the reference column reports what the pixel at (H // 2, W // 2) would score.

        Both columns are NaN for images without a box and for maps of NaN, so that their means are over the
        same images.
        """
        height, width = maps.shape[1:]
        extents = _pixel_extents(batch.boxes, (height, width), maps.device)
        top = ranks(maps, batch.seeds).argmin(1)
        undefined = ~_occupied(extents).any(1) | unreadable(maps)
        points = {
            "pointing_game": (top % width, top // width),
            "pointing_game_center": (torch.full_like(top, width // 2), torch.full_like(top, height // 2)),
        }
        hits = {name: self._hits(x, y, extents).to(maps.dtype) for name, (x, y) in points.items()}
        return Scores({name: hit.masked_fill(undefined, torch.nan) for name, hit in hits.items()})

    def _hits(self, x: Tensor, y: Tensor, extents: Tensor) -> Tensor:
        """Return (B,) bool: whether pixel (x, y), or a pixel closer to it than the tolerance, is in a box."""
        left, top, right, bottom = extents.unbind(2)
        across = torch.maximum(left - x[:, None], x[:, None] - right).clamp(min=0)
        down = torch.maximum(top - y[:, None], y[:, None] - bottom).clamp(min=0)
        squared = across**2 + down**2
        return (((squared == 0) | (squared < self.tolerance**2)) & _occupied(extents)).any(1)


@register
class EnergyPointingGame:
    """The share of the map that lies in the union of the image's boxes."""

    name: ClassVar[str] = "energy_pointing_game"
    title: ClassVar[str] = "Share of the map inside the boxes (Wang et al. 2020, Score-CAM)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.BOXES})
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:
        pass

    def columns(self) -> list[Column]:
        return [Column("energy_pointing_game", 0.0, 1.0, "higher"), Column("box_area", 0.0, 1.0, None)]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; the reference column reports the boxes' share of the input, which a flat map scores.

        Both columns are NaN for images without a box, for maps of NaN, and for maps of zeros, where the share
        is 0 / 0.
        """
        height, width = maps.shape[1:]
        inside = _union(_pixel_extents(batch.boxes, (height, width), maps.device), (height, width))
        energy = (maps * inside).sum((1, 2)) / maps.sum((1, 2))
        area = inside.to(maps.dtype).mean((1, 2))
        undefined = (area == 0) | energy.isnan()
        return Scores(
            {
                "energy_pointing_game": energy.masked_fill(undefined, torch.nan),
                "box_area": area.masked_fill(undefined, torch.nan),
            }
        )


def _pixel_extents(boxes: list[Tensor], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the extent of each box's pixels, cut to the input of ``size`` (H, W).

    Returns
    -------
    (B, K, 4) int64
        First column, first row, last column and last row. Images with fewer than K boxes are padded. A box
        that holds no pixel, as all padding, ends before it begins.
    """
    padded = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True).to(device)
    bounds = (padded - 0.5).ceil().long()
    height, width = size
    limits = torch.tensor([width, height], device=device)
    first = bounds[..., :2].clamp(min=0)
    last = torch.minimum(bounds[..., 2:], limits) - 1
    return torch.cat([first, last], 2)


def _occupied(extents: Tensor) -> Tensor:
    """Return (B, K) bool: which boxes hold at least one pixel."""
    return (extents[..., 2:] >= extents[..., :2]).all(2)


def _union(extents: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, H, W) bool: which pixels are in at least one box."""
    x = torch.arange(size[1], device=extents.device)
    y = torch.arange(size[0], device=extents.device)
    left, top, right, bottom = extents[..., None].unbind(2)
    columns = (x >= left) & (x <= right)
    rows = (y >= top) & (y <= bottom)
    # The number of boxes that hold each pixel, counted without a (B, K, H, W) tensor.
    return torch.einsum("bkh,bkw->bhw", rows.float(), columns.float()) > 0
