"""How much a map shows, whatever the classifier does: entropy, effective complexity, mask area.

All three depend on how maps are prepared and on the number of sites. They say nothing about faithfulness: a
map of a single site is the simplest. A map of zeros shows nothing, which does not count as simple: it has no
value in these metrics, nor in those of :mod:`tasks.metrics.shape`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.ranking import sites_of
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


@register
class Entropy:
    """The entropy of the map as a distribution over its n sites: 0 for a single site, ln n for a flat map.

    It is -sum p ln p with p = map / sum, in nats.
    """

    name: ClassVar[str] = "entropy"
    title: ClassVar[str] = "Entropy of the map in nats (Bhatt et al. 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:
        pass

    def columns(self) -> list[Column]:
        return [Column("entropy", 0.0, math.inf, "lower", within="size")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:  # noqa: ARG002
        """Score maps; maps of zeros are NaN."""
        values = maps.flatten(1).double().clamp(min=0)
        total = values.sum(1, keepdim=True)
        entropy = torch.special.entr(values / total).sum(1)
        return Scores({"entropy": entropy.to(maps.dtype)})


class EffectiveComplexityParameters(Parameters):
    """Parameters of effective complexity."""

    threshold: float = Field(
        default=1e-5,
        ge=0,
        lt=1,
        description="a site counts if its value in the prepared map, which is in [0, 1], is above this; the "
        "default is that of Quantus",
    )


@register
class EffectiveComplexity:
    """The share of sites whose value is above a threshold: at least 1 / n for n sites, 1 for a flat map.

    CHOICE: values above a threshold are counted, as in Quantus. The count is divided by the number of sites,
    so that inputs of different sizes can be compared. Nguyen and Martínez themselves define the smallest
    number of sites that determines the prediction.
    """

    name: ClassVar[str] = "effective_complexity"
    title: ClassVar[str] = "Share of sites above a threshold (after Nguyen and Martínez 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = EffectiveComplexityParameters

    def __init__(self, classifier: BlackBox, parameters: EffectiveComplexityParameters) -> None:  # noqa: ARG002
        self.threshold = parameters.threshold

    def columns(self) -> list[Column]:
        return [Column("effective_complexity", 0.0, 1.0, "lower")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:  # noqa: ARG002
        """Score maps; maps of zeros are NaN."""
        share = (maps.flatten(1) > self.threshold).sum(1) / sites_of(maps)
        return Scores({"effective_complexity": share.masked_fill(shows_nothing(maps), torch.nan)})


@register
class MaskArea:
    """The mean of the map: its area as a mask, at least 1 / n for n sites, 1 for a flat map.

    It is also the complexity in ADCC.
    """

    name: ClassVar[str] = "mask_area"
    title: ClassVar[str] = "Mean of the map (Poppi et al. 2021)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:
        pass

    def columns(self) -> list[Column]:
        return [Column("mask_area", 0.0, 1.0, "lower")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:  # noqa: ARG002
        """Score maps; maps of zeros are NaN."""
        mean = maps.flatten(1).double().clamp(min=0).sum(1) / sites_of(maps)
        return Scores({"mask_area": mean.to(maps.dtype).masked_fill(shows_nothing(maps), torch.nan)})


def shows_nothing(maps: Tensor) -> Tensor:
    """Return (B,) bool: which prepared (B, \\*sites) maps are zero, or NaN, at all of their sites."""
    return ~(maps.flatten(1) > 0).any(1)
