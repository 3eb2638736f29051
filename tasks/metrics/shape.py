"""The shape of a map: the number of its connected regions, and its roughness."""

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
    """Parameters of connected regions."""

    threshold: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="pixels above this share of the map's maximum belong to a region",
    )


@register
class ConnectedRegions:
    """The number of connected regions of the map's high values: 1 for a flat map.

    Pixels that share an edge or a corner are connected. Regions are found on the CPU.
    """

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
        """Score maps; maps of zeros are NaN."""
        found = connected_components((maps > self.threshold * maps.amax((1, 2), keepdim=True)).cpu().numpy())
        counts = torch.from_numpy(np.bincount(found.image, minlength=len(maps)))
        regions = counts.to(maps).masked_fill(shows_nothing(maps), torch.nan)
        return Scores({"connected_regions": regions})


@register
class TotalVariation:
    """The sum of the absolute differences between neighbouring sites, along each axis, per site.

    It is 0 for a flat map, and at most the number of axes. In a text, adjacent tokens are neighbours; tokens
    on the two sides of a special token are not.
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
        """Score maps; maps of zeros are NaN."""
        there = ~maps.isneginf()
        values = maps.double().clamp(min=0)
        total = values.new_zeros(len(maps))
        for axis in range(1, maps.ndim):
            last = maps.shape[axis] - 1
            both = there.narrow(axis, 1, last) & there.narrow(axis, 0, last)
            total += torch.where(both, values.diff(dim=axis).abs(), 0).flatten(1).sum(1)
        variation = (total / sites_of(maps)).to(maps.dtype)
        return Scores({"total_variation": variation.masked_fill(shows_nothing(maps), torch.nan)})
