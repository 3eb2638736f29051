"""Pixel flipping: what is left of the class as sites are replaced, the most salient first.

Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
Propagation", PLOS ONE 2015; Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has
Learned", IEEE TNNLS 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from explainers.base import Parameters
from explainers.probes.masked_forward import SCALARS
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.curves import RANGES, WITHIN, Curve, CurveParameters
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class PixelFlippingParameters(CurveParameters):
    """After step k of ``steps`` ceil(k N / steps) of N sites are replaced by ``fill``.

    CHOICE: by default ``fill`` is black for images, the mask token for texts (remove where there is none) and
    zero for numbers. Bach et al. invert the pixels of binary images, Samek et al. draw regions of 9x9 pixels
    at random, 100 of them. ``output`` is what is read of the explained class, its probability or its logit.
    """


@register
class PixelFlipping:
    """Two numbers of one curve f(x_0), ..., f(x_L), x_k being the input x_0 with sites replaced in k steps.

    ``pixel_flipping`` is the mean of f(x_k) over k = 1, ..., L, the curve that Bach et al. draw; ``aopc`` the
    mean of f(x_0) - f(x_k) over k = 0, ..., L (Samek et al., eq. 12), which takes off what the class had to
    begin with. The order of sites is all that counts of a map: one that is flat has the order of the image's
    seed.

    As in deletion, a hole in the shape of the object still shows it: noise does as well as the true pixels of
    the demo's digits.

    With the same fill, ``pixel_flipping`` is deletion's area less (f(x_0) - f(x_L)) / 2L. CHOICE: in the end
    all sites are replaced.
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

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) prepared maps; maps of NaN have values and a curve of NaN.

        The curve has a point before the first step and one after each: steps + 1 points.
        """
        points = self.curve.points(batch, maps, inserts=False)
        values = {"pixel_flipping": points[:, 1:].mean(1), "aopc": (points[:, :1] - points).mean(1)}
        return Scores(values, {"pixel_flipping": points})
