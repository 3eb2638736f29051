"""What a map looks like: in how many pieces it is, and how rough."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.complexity import shows_nothing
from tasks.metrics.connected import connected_components
from tasks.metrics.ranking import sites_of
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class ConnectedRegionsParameters(Parameters):
    """``threshold``: pixels above this share of the map's maximum belong to a region."""

    threshold: float = Field(default=0.5, ge=0, lt=1)


@register
class ConnectedRegions:
    """In how many pieces the map's high values are; pixels are connected by edges and by corners."""

    name: ClassVar[str] = "connected_regions"
    title: ClassVar[str] = "Number of connected regions above a threshold"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[Parameters]] = ConnectedRegionsParameters

    def __init__(self, classifier: BlackBox, parameters: ConnectedRegionsParameters) -> None:  # noqa: ARG002
        self.threshold = parameters.threshold

    def columns(self) -> list[Column]:
        return [Column("connected_regions", 1.0, math.inf, "lower", within="size")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:  # noqa: ARG002
        """Score (B, H, W) prepared maps, on the CPU: 1 for a flat one; NaN for maps of zeros or NaN."""
        found = connected_components((maps > self.threshold * maps.amax((1, 2), keepdim=True)).cpu().numpy())
        counts = torch.from_numpy(np.bincount(found.image, minlength=len(maps)))
        regions = counts.to(maps).masked_fill(shows_nothing(maps), torch.nan)
        return Scores({"connected_regions": regions})


@register
class TotalVariation:
    """Sum of the steps between neighbouring sites along each axis, by the number of sites.

    0 for a flat map, and at most the number of axes. Of a text, tokens are neighbours that have nothing
    between them; special tokens part them.
    """

    name: ClassVar[str] = "total_variation"
    title: ClassVar[str] = "Anisotropic total variation of the map, per site (after Rudin et al. 1992)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:
        pass

    def columns(self) -> list[Column]:
        return [Column("total_variation", 0.0, 2.0, "lower", within="size")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:  # noqa: ARG002
        """Score (B, H, W) or (B, T) prepared maps; NaN for maps of zeros or NaN."""
        there = ~maps.isneginf()
        values = maps.double().clamp(min=0)
        total = values.new_zeros(len(maps))
        for axis in range(1, maps.ndim):
            last = maps.shape[axis] - 1
            both = there.narrow(axis, 1, last) & there.narrow(axis, 0, last)
            total += torch.where(both, values.diff(dim=axis).abs(), 0).flatten(1).sum(1)
        variation = (total / sites_of(maps)).to(maps.dtype)
        return Scores({"total_variation": variation.masked_fill(shows_nothing(maps), torch.nan)})
