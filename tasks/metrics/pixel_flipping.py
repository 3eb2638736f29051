"""Pixel flipping: the target's score as sites are replaced, the most salient first.

Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
Propagation", PLOS ONE 2015; Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has
Learned", IEEE TNNLS 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.modality import Fill
from explainers.probes.masked_forward import SCALARS
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.curves import RANGES, WITHIN, Curve, CurveParameters
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class PixelFlippingParameters(CurveParameters):
    """Parameters of pixel flipping.

    CHOICE: the default fill. Bach et al. invert the pixels of binary images; Samek et al. replace 100 regions
    of 9x9 pixels by random values.
    """

    fill: Fill | None = Field(
        default=None,
        description="what replaces sites; by default black for images, mask for texts (remove where there is "
        "no mask token), and zero for numbers",
    )


@register
class PixelFlipping:
    """Two means of the curve f(x_0), ..., f(x_L), where x_k is the input x_0 with sites replaced in k steps.

    ``pixel_flipping`` is the mean of f(x_k) over k = 1, ..., L, the curve that Bach et al. draw. ``aopc`` is
    the mean of f(x_0) - f(x_k) over k = 0, ..., L (Samek et al., eq. 12), which is relative to the score on
    the whole input. Only the order of the sites counts. For a flat map, it is the random order of the image's
    seed.

    As in deletion, a hole in the shape of the object still shows the object: noise does as well as the true
    pixels of the demo's digits.

    With the same fill, ``pixel_flipping`` is deletion's area minus (f(x_0) - f(x_L)) / 2L. CHOICE: after the
    last step all sites are replaced.
    """

    name: ClassVar[str] = "pixel_flipping"
    title: ClassVar[str] = "Mean probability, and its loss, as salient sites are replaced (Bach et al. 2015)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = PixelFlippingParameters

    def __init__(self, classifier: BlackBox, parameters: PixelFlippingParameters) -> None:
        self.range, self.within = RANGES[parameters.output], WITHIN[parameters.output]
        self.curve = Curve(classifier, parameters.steps, parameters.fill, "black", SCALARS[parameters.output])

    def columns(self) -> list[Column]:
        low, high = self.range
        fill = self.curve.filled_with
        return [
            Column("pixel_flipping", low, high, "lower", fill, within=self.within),
            Column("aopc", low - high, high - low, "higher", fill, within=self.within),
        ]

    @staticmethod
    def axes(column: str, parameters: PixelFlippingParameters) -> Axes:  # noqa: ARG004
        return Axes("share of {sites} replaced", f"{parameters.output} of the class")

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; the curve has one point before the first step and one after each: steps + 1 points.

        ``aopc`` has no curve of its own.
        """
        points = self.curve.points(batch, maps, inserts=False)
        values = {"pixel_flipping": points[:, 1:].mean(1), "aopc": (points[:, :1] - points).mean(1)}
        return Scores(values, {"pixel_flipping": points})
