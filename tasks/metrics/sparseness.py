"""Sparseness: how few sites hold most of the map's sum, as the Gini index of its values."""

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
    """The Gini index of the n values of the prepared map: 0 for a flat map, 1 - 1/n for a single site."""

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
        """Score maps; maps of zeros are NaN (0 / 0)."""
        return Scores({"sparseness": gini(maps.flatten(1))})


def gini(values: Tensor) -> Tensor:
    """Compute the Gini index of each row.

    It is sum_i (2i - n - 1) v_(i) / (n sum v), with the values v_(i) in ascending order and i from 1. It is
    computed in float64, since the terms of a flat row cancel.

    Parameters
    ----------
    values
        (B, N), not negative; values of -inf are left out.

    Returns
    -------
    (B,)
        In [0, 1 - 1/n] for a row of n values; NaN for rows of zeros.
    """
    away = values.isneginf()
    ascending = values.double().sort(1).values.clamp(min=0)
    n = (~away).sum(1, keepdim=True)
    i = torch.arange(1, values.shape[1] + 1, device=values.device) - away.sum(1, keepdim=True)
    sums = (ascending * (2 * i - n - 1)).sum(1, keepdim=True) / (n * ascending.sum(1, keepdim=True))
    return sums[:, 0].to(values.dtype)
