"""Insertion and deletion: how fast the class appears or vanishes as sites are shown or hidden by saliency.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.modality import Fill, ImageFill
from explainers.probes.masked_forward import SCALARS
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.curves import RANGES, WITHIN, Curve, CurveParameters
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class InsertionParameters(CurveParameters):
    """Parameters of insertion. RISE's evaluation of whole datasets takes 28 steps at 224x224."""

    fill: Fill | None = Field(
        default=None,
        description="what hides sites; by default blur for images, as in RISE, mask for texts (remove where "
        "there is no mask token), and zero for numbers",
    )


class DeletionParameters(InsertionParameters):
    """Parameters of deletion. RISE's evaluation of whole datasets takes 28 steps at 224x224."""

    fill: Fill | None = Field(
        default=None,
        description="what hides sites; by default mean for images, mask for texts (remove where there is no "
        "mask token), and zero for numbers",
    )


class _CurveArea:
    """The area under the target's probability as sites are shown or hidden in order of saliency."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    better: ClassVar[str]
    inserts: ClassVar[bool]
    image_fill: ClassVar[ImageFill]  # the default for images

    def __init__(self, classifier: BlackBox, parameters: InsertionParameters) -> None:
        self.range, self.within = RANGES[parameters.output], WITHIN[parameters.output]
        self.curve = Curve(
            classifier, parameters.steps, parameters.fill, self.image_fill, SCALARS[parameters.output]
        )

    def columns(self) -> list[Column]:
        return [Column(self.name, *self.range, self.better, self.curve.filled_with, within=self.within)]

    @classmethod
    def axes(cls, column: str, parameters: InsertionParameters) -> Axes:  # noqa: ARG003
        return Axes(
            f"share of {{sites}} {'inserted' if cls.inserts else 'deleted'}",
            f"{parameters.output} of the class",
        )

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a curve has one point before the first step and one after each: steps + 1 points."""
        points = self.curve.points(batch, maps, inserts=self.inserts)
        area = torch.trapezoid(points, dim=1) / (points.shape[1] - 1)
        return Scores({self.name: area}, {self.name: points})


@register
class Insertion(_CurveArea):
    """The area under the target's probability as sites are shown on the fill, the most salient first."""

    name: ClassVar[str] = "insertion"
    title: ClassVar[str] = "Area under the probability as salient sites are shown (Petsiuk et al. 2018)"
    better: ClassVar[str] = "higher"
    inserts: ClassVar[bool] = True
    image_fill: ClassVar[ImageFill] = "blur"
    Parameters: ClassVar[type[Parameters]] = InsertionParameters


@register
class Deletion(_CurveArea):
    """The area under the target's probability as sites are hidden by the fill, the most salient first.

    A hole in the shape of the object still shows the object. On the demo's digits, a map of the digit's true
    pixels scores no better than noise, which breaks up the whole image at once. Read this metric beside the
    controls.
    """

    name: ClassVar[str] = "deletion"
    title: ClassVar[str] = "Area under the probability as salient sites are hidden (Petsiuk et al. 2018)"
    better: ClassVar[str] = "lower"
    inserts: ClassVar[bool] = False
    image_fill: ClassVar[ImageFill] = "mean"
    Parameters: ClassVar[type[Parameters]] = DeletionParameters
