"""Insertion and deletion: how fast the class appears or vanishes as pixels are shown or hidden in order.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.masking import filled
from tasks.metrics.base import Column, MetricBatch, Scores
from tasks.metrics.composites import target_probabilities
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.classifier import Classifier

Fill = Literal["blur", "mean", "black"]
FILLS: dict[Fill, str] = {
    "blur": "the input blurred (11x11 kernel, sigma 5, zero padding after normalisation)",
    "mean": "the mean the classifier subtracts (zero after normalisation)",
    "black": "black",
}


class InsertionParameters(Parameters):
    """``steps`` of ceil(H*W / steps) pixels, all channels of a pixel at once; ``fill`` hides pixels.

    RISE's evaluation of whole data sets: 28 steps at 224x224.
    """

    steps: int = Field(default=28, ge=2)
    fill: Fill = "blur"


class DeletionParameters(InsertionParameters):
    """As for insertion, with the mean as the fill."""

    fill: Fill = "mean"


class _Causal:
    """The area under the target's probability while pixels change sides in order of saliency."""

    name: ClassVar[str]
    needs_boxes: ClassVar[bool] = False
    better: ClassVar[str]
    inserts: ClassVar[bool]

    def __init__(self, classifier: Classifier, parameters: InsertionParameters) -> None:
        self.classifier, self.parameters = classifier, parameters

    def columns(self) -> list[Column]:
        return [Column(self.name, 0.0, 1.0, self.better, FILLS[self.parameters.fill])]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps; maps of NaN have a value and a curve of NaN.

        The curve has a point after each step, and one before the first: steps + 1 points wherever H*W is at
        least steps * (steps - 1), fewer where the rounded-up step exhausts a smaller input sooner.
        """
        step = -(-maps[0].numel() // self.parameters.steps)
        curve = self._curve(batch, ranks(maps, batch.seeds).view_as(maps), step)
        curve = curve.masked_fill(unreadable(maps)[:, None], torch.nan)
        area = torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
        return Scores({self.name: area}, {self.name: curve})

    def _curve(self, batch: MetricBatch, order: Tensor, step: int) -> Tensor:
        """(B, points) probability of the target with the ``k * step`` first pixels of ``order`` changed."""
        steps = -(-order[0].numel() // step)
        order = order.int()
        fill = _fill(self.classifier, batch.inputs, self.parameters.fill)
        start, end = (fill, batch.inputs) if self.inserts else (batch.inputs, fill)

        def compose(image: Tensor, variant: Tensor) -> Tensor:
            count = (variant.int() + 1) * step
            changed = order.index_select(0, image) < count[:, None, None]
            # With weights of exactly 0 and 1 this copies, and is faster on the CPU than torch.where.
            return torch.lerp(_rows(start, image), _rows(end, image), changed[:, None].to(start.dtype))

        between = target_probabilities(self.classifier, batch, steps - 1, compose)
        bare = self._probability_of_fill(batch, fill)
        ends = (bare, batch.confidence) if self.inserts else (batch.confidence, bare)
        return torch.cat([ends[0][:, None], between, ends[1][:, None]], 1)

    def _probability_of_fill(self, batch: MetricBatch, fill: Tensor) -> Tensor:
        """(B,) probability of the target where nothing of the input is left; once for a common fill."""
        if len(fill) == 1:
            return self.classifier.logits(fill.expand_as(batch.inputs[:1])).softmax(1)[0, batch.targets]
        return target_probabilities(self.classifier, batch, 1, lambda image, _: fill[image])[:, 0]


@register
class Insertion(_Causal):
    """Pixels are shown on the fill, the most salient first."""

    name: ClassVar[str] = "insertion"
    title: ClassVar[str] = "Area under the probability as salient pixels are shown (Petsiuk et al. 2018)"
    better: ClassVar[str] = "higher"
    inserts: ClassVar[bool] = True
    Parameters: ClassVar[type[Parameters]] = InsertionParameters


@register
class Deletion(_Causal):
    """Pixels are hidden by the fill, the most salient first."""

    name: ClassVar[str] = "deletion"
    title: ClassVar[str] = "Area under the probability as salient pixels are hidden (Petsiuk et al. 2018)"
    better: ClassVar[str] = "lower"
    inserts: ClassVar[bool] = False
    Parameters: ClassVar[type[Parameters]] = DeletionParameters


def _fill(classifier: Classifier, inputs: Tensor, fill: Fill) -> Tensor:
    """What hides a pixel: (B, 3, H, W), or (1, 3, 1, 1) if it is the same everywhere."""
    if fill == "blur":
        mean = classifier.mean[None]
        # Equal to blurring the normalised input: once the mean is taken off, the two differ by a scale per
        # channel, and blurring with zero padding is linear.
        return _blur(inputs - mean) + mean
    return filled(classifier, inputs, fill)


def _rows(images: Tensor, rows: Tensor) -> Tensor:
    """The given rows, or the only one, which broadcasts."""
    return images if len(images) == 1 else images.index_select(0, rows)


def _blur(inputs: Tensor, size: int = 11, sigma: float = 5.0) -> Tensor:
    """Each channel convolved with RISE's kernel, which is separable, zero beyond the border."""
    kernel = _kernel(size, sigma).to(inputs)
    planes = inputs.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, kernel[None, None, :, None], padding=(size // 2, 0))
    planes = F.conv2d(planes, kernel[None, None, None, :], padding=(0, size // 2))
    return planes.view_as(inputs)


def _kernel(size: int, sigma: float) -> Tensor:
    """(size,) float64: a unit impulse filtered by a Gaussian cut at 4 sigma, mirrored at the array's ends.

    So RISE makes it. With sigma half the size the mirroring folds the tails back: nearly a box.
    """
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    sources = (torch.arange(size)[:, None] + offsets) % (2 * size)
    mirrored = torch.minimum(sources, 2 * size - 1 - sources)
    return torch.where(mirrored == size // 2, weights / weights.sum(), 0.0).sum(1)
