"""Minimal sufficient fraction: the smallest share of an input, by saliency, that keeps the class.

The threshold is that of Shitole et al., "One Explanation is Not Enough: Structured Attention Graphs for Image
Classification", NeurIPS 2021. They search for the smallest sets; here the map gives the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.modality import Fill
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.composites import probability_and_prediction
from tasks.metrics.curves import Curve
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class MinimalSufficientFractionParameters(Parameters):
    """Parameters of the minimal sufficient fraction."""

    level: float = Field(
        default=0.9, gt=0, le=1, description="share of the probability on the whole input that has to be kept"
    )
    steps: int = Field(
        default=50,
        ge=2,
        le=1_000_000,
        description="number of steps: shares of 0, 1 / steps, 2 / steps, ..., 1 are tried",
    )
    fill: Fill | None = Field(
        default=None,
        description="what replaces all other sites; by default black for images, mask for texts (remove "
        "where there is no mask token), and zero for numbers",
    )


@register
class MinimalSufficientFraction:
    """The smallest tried share of sites, the most salient ones, that is enough for the class.

    A share is enough for ``minimal_sufficient_prediction`` if the target is the class with the highest logit,
    and for ``minimal_sufficient_confidence`` if the target's probability is at least ``level`` times that on
    the whole input. The curves hold, at all shares tried, whether the target is predicted (0 or 1), and its
    probability. They need not rise, so all shares are tried. The value is the smallest share that is enough;
    larger shares may not be. It is 0 if the fill alone is enough. It is 1 if no share is enough, for instance
    for a target that is not the prediction on the whole input.

    After step k, ceil(k N / steps) of N sites are kept, and the share is that number divided by N: for a text
    of three tokens, it is 0, 1/3, 2/3 or 1. A flat map keeps sites in the random order of the image's seed.
    """

    name: ClassVar[str] = "minimal_sufficient_fraction"
    title: ClassVar[str] = "Smallest share of salient sites that keeps the class (after Shitole et al. 2021)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = MinimalSufficientFractionParameters

    def __init__(self, classifier: BlackBox, parameters: MinimalSufficientFractionParameters) -> None:
        self.level = parameters.level
        self.curve = Curve(classifier, parameters.steps, parameters.fill, "black", probability_and_prediction)

    def columns(self) -> list[Column]:
        return [
            Column(f"minimal_sufficient_{what}", 0.0, 1.0, "lower", self.curve.filled_with)
            for what in ("prediction", "confidence")
        ]

    @staticmethod
    def axes(column: str, parameters: MinimalSufficientFractionParameters) -> Axes:  # noqa: ARG004
        kept = column == "minimal_sufficient_prediction"
        return Axes(
            "share of {sites} shown", "share with class predicted" if kept else "probability of the class"
        )

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a curve has one point before the first step and one after each: steps + 1 points."""
        probability, predicted = self.curve.points(batch, maps, inserts=True).unbind(2)
        counts = self.curve.counts(maps)
        shares = counts / counts[:, -1:]
        enough = (predicted == 1, probability >= self.level * probability[:, -1:])
        names = [column.name for column in self.columns()]
        curves = dict(zip(names, (predicted, probability), strict=True))
        found = (shares.masked_fill(~each, 1.0).amin(1) for each in enough)
        values = (value.masked_fill(predicted.isnan().any(1), torch.nan) for value in found)
        return Scores(dict(zip(names, values, strict=True)), curves)
