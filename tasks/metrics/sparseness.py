"""Sparseness: how few pixels hold the map, as the Gini index of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


@register
class Sparseness:
    """Gini index of the n values of the prepared map: 0 for a flat map, 1 - 1/n for a single pixel."""

    name: ClassVar[str] = "sparseness"
    title: ClassVar[str] = "Gini index of the map (Chalasani et al. 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:
        pass

    def columns(self) -> list[Column]:
        return [Column("sparseness", 0.0, 1.0, "higher")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:  # noqa: ARG002
        """Score (B, \\*sites) prepared maps; NaN for maps of zeros (0/0) and for maps of NaN."""
        return Scores({"sparseness": gini(maps.flatten(1))})


def gini(values: Tensor) -> Tensor:
    """Gini index of each row of (B, N), none negative, -inf left out: (B,) in [0, 1 - 1/n] for n values.

    sum_i (2i - n - 1) v_(i) / (n sum v), the values in ascending order, i from 1; in float64, since the terms
    of a flat row cancel. NaN for rows of zeros.
    """
    away = values.isneginf()
    ascending = values.double().sort(1).values.clamp(min=0)
    n = (~away).sum(1, keepdim=True)
    i = torch.arange(1, values.shape[1] + 1, device=values.device) - away.sum(1, keepdim=True)
    sums = (ascending * (2 * i - n - 1)).sum(1, keepdim=True) / (n * ascending.sum(1, keepdim=True))
    return sums[:, 0].to(values.dtype)
