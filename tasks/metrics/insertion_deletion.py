"""Insertion and deletion: how fast the class appears or vanishes as sites are shown or hidden in order.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from explainers.base import Parameters
from explainers.models.modality import ImageFill
from explainers.probes.masked_forward import SCALARS
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.curves import RANGES, WITHIN, Curve, CurveParameters
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class InsertionParameters(CurveParameters):
    """After step k of ``steps`` ceil(k N / steps) of N sites have changed; ``fill`` hides sites.

    RISE's evaluation of whole data sets: 28 steps at 224x224. By default ``fill`` is blur for images, as in
    RISE, the mask token for texts (remove where there is none), and zero for numbers. ``output`` is what the
    area is under: the probability, as in RISE, or the logit, whose areas have no bounds.
    """


class DeletionParameters(InsertionParameters):
    """As for insertion, with the mean as the fill of images."""


class _CurveArea:
    """The area under the target's probability while pixels change sides in order of saliency."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    better: ClassVar[str]
    inserts: ClassVar[bool]
    image_fill: ClassVar[ImageFill]  # RISE's

    def __init__(self, classifier: BlackBox, parameters: InsertionParameters) -> None:
        self.range, self.within = RANGES[parameters.output], WITHIN[parameters.output]
        self.curve = Curve(
            classifier, parameters.steps, parameters.fill, self.image_fill, SCALARS[parameters.output]
        )

    def columns(self) -> list[Column]:
        return [Column(self.name, *self.range, self.better, self.curve.filled_with, within=self.within)]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) prepared maps; maps of NaN have a value and a curve of NaN.

        The curve has a point before the first step and one after each: steps + 1 points.
        """
        points = self.curve.points(batch, maps, inserts=self.inserts)
        area = torch.trapezoid(points, dim=1) / (points.shape[1] - 1)
        return Scores({self.name: area}, {self.name: points})


@register
class Insertion(_CurveArea):
    """Sites are shown on the fill, the most salient first."""

    name: ClassVar[str] = "insertion"
    title: ClassVar[str] = "Area under the probability as salient sites are shown (Petsiuk et al. 2018)"
    better: ClassVar[str] = "higher"
    inserts: ClassVar[bool] = True
    image_fill: ClassVar[ImageFill] = "blur"
    Parameters: ClassVar[type[Parameters]] = InsertionParameters


@register
class Deletion(_CurveArea):
    """Sites are hidden by the fill, the most salient first.

    A hole in the shape of the object still shows the object: on the demo's digits a map of the digit's true
    pixels scores no better than noise, which breaks up everything at once. Read it beside the controls.
    """

    name: ClassVar[str] = "deletion"
    title: ClassVar[str] = "Area under the probability as salient sites are hidden (Petsiuk et al. 2018)"
    better: ClassVar[str] = "lower"
    inserts: ClassVar[bool] = False
    image_fill: ClassVar[ImageFill] = "mean"
    Parameters: ClassVar[type[Parameters]] = DeletionParameters
