"""How little of an input, taken in order of saliency, is enough for the classifier.

The threshold is that of Shitole et al., "One Explanation is Not Enough: Structured Attention Graphs for Image
Classification", NeurIPS 2021, who search for the smallest sets themselves. Here the map gives the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.modality import Fill
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.composites import probability_and_prediction
from tasks.metrics.curves import Curve
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class MinimalSufficientFractionParameters(Parameters):
    """``level`` of the confidence has to be kept; shares of 0, 1 / ``steps``, 2 / ``steps``, ... are tried.

    ``fill`` stands in the place of all other sites: by default black for images, the mask token for texts
    (remove where there is none), and zero for numbers.
    """

    level: float = Field(default=0.9, gt=0, le=1)
    steps: int = Field(default=50, ge=2)
    fill: Fill | None = None


@register
class MinimalSufficientFraction:
    """The smallest tried share of sites, the most salient ones, with which alone the class is still there.

    ``minimal_sufficient_prediction``: the target is the class with the highest logit;
    ``minimal_sufficient_confidence``: its probability is at least ``level`` times that on the whole input.
    Curves are whether it is, 0 or 1, and the probability, at all shares tried. They need not rise, so all
    shares are tried and the smallest counts, not the one from which on it holds. 0 where the fill alone is
    enough; 1 where no share is, as for a target that is not the prediction of the whole input either.

    A share is the number of sites kept, k of ``steps`` times all rounded up, over all: of a text of three
    tokens 0, 1/3, 2/3 or 1. Flat maps keep sites in the order of the image's seed.
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

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) prepared maps; maps of NaN have values and curves of NaN.

        Curves have a point before the first step and one after each: steps + 1 points.
        """
        probability, predicted = self.curve.points(batch, maps, inserts=True).unbind(2)
        counts = self.curve.counts(maps)
        shares = counts / counts[:, -1:]
        enough = (predicted == 1, probability >= self.level * probability[:, -1:])
        names = [column.name for column in self.columns()]
        curves = dict(zip(names, (predicted, probability), strict=True))
        found = (shares.masked_fill(~each, 1.0).amin(1) for each in enough)
        values = (value.masked_fill(predicted.isnan().any(1), torch.nan) for value in found)
        return Scores(dict(zip(names, values, strict=True)), curves)
