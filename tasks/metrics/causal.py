"""Insertion and deletion: how fast the class appears or vanishes as sites are shown or hidden in order.

Sites are an image's pixels, a text's tokens or the steps of a series.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.black_box import check_fill
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.composites import target_probabilities
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks, sites_of
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.black_box import BlackBox

Fill = Literal["blur", "mean", "black", "white", "mask", "remove", "zero"]
FILLS: dict[tuple[str, str], str] = {
    ("image", "blur"): "the input blurred (11x11 kernel, sigma 5, zero padding after normalisation)",
    ("image", "mean"): "the mean the classifier subtracts (zero after normalisation)",
    ("image", "black"): "black",
    ("image", "white"): "white",
    ("text", "mask"): "mask tokens",
    ("text", "remove"): "nothing: hidden tokens are taken out",
    ("tensor", "zero"): "zero",
    ("tensor", "mean"): "the mean of each channel over the input's own sites",
}


class InsertionParameters(Parameters):
    """After step k of ``steps`` ceil(k N / steps) of N sites have changed; ``fill`` hides sites.

    RISE's evaluation of whole data sets: 28 steps at 224x224. By default ``fill`` is blur for images, as in
    RISE, the mask token for texts (remove where there is none), and zero for numbers.
    """

    steps: int = Field(default=28, ge=2)
    fill: Fill | None = None


class DeletionParameters(InsertionParameters):
    """As for insertion, with the mean as the fill of images."""


class _Causal:
    """The area under the target's probability while pixels change sides in order of saliency."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    better: ClassVar[str]
    inserts: ClassVar[bool]
    image_fill: ClassVar[Fill]  # RISE's

    def __init__(self, classifier: BlackBox, parameters: InsertionParameters) -> None:
        self.classifier, self.steps = classifier, parameters.steps
        own = self.image_fill if classifier.modality == "image" else classifier.fills[0]
        self.fill: str = parameters.fill or own
        check_fill(classifier, self.fill)

    def columns(self) -> list[Column]:
        fill = FILLS[self.classifier.modality, self.fill]
        return [Column(self.name, 0.0, 1.0, self.better, fill)]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) prepared maps; maps of NaN have a value and a curve of NaN.

        The curve has a point before the first step and one after each: steps + 1 points.
        """
        curve = self._curve(batch, ranks(maps, batch.seeds).view_as(maps), sites_of(maps))
        curve = curve.masked_fill(unreadable(maps)[:, None], torch.nan)
        area = torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
        return Scores({self.name: area}, {self.name: curve})

    def _curve(self, batch: MetricBatch, order: Tensor, sites: Tensor) -> Tensor:
        """(B, steps + 1) probability of the target with the first of ``order`` (B, \\*sites) changed."""
        order = order.int()
        step = torch.arange(1, self.steps, device=order.device)
        counts = -(-step * sites[:, None] // self.steps)
        fill = self._fill(batch.inputs)
        start, end = (fill, batch.inputs) if self.inserts else (batch.inputs, fill)

        def compose(image: Tensor, variant: Tensor) -> Tensor:
            count = counts[image, variant].view(-1, *[1] * (order.ndim - 1))
            changed = (order.index_select(0, image) < count)[:, None]
            if not self.classifier.graded:
                return torch.where(changed, _rows(end, image), _rows(start, image))
            # With weights of exactly 0 and 1 this copies, and is faster on the CPU than torch.where.
            return torch.lerp(_rows(start, image), _rows(end, image), changed.to(start.dtype))

        # A text of few tokens changes at some of the steps only.
        between = target_probabilities(self.classifier, batch, self.steps - 1, compose, same=counts)
        bare = self._probability_of_fill(batch, fill)
        ends = (bare, batch.confidence) if self.inserts else (batch.confidence, bare)
        return torch.cat([ends[0][:, None], between, ends[1][:, None]], 1)

    def _probability_of_fill(self, batch: MetricBatch, fill: Tensor) -> Tensor:
        """(B,) probability of the target where nothing of the input is left; once for a common fill."""
        if len(fill) == 1:
            return self.classifier.logits(fill.expand_as(batch.inputs[:1])).softmax(1)[0, batch.targets]
        return target_probabilities(
            self.classifier, batch, 1, lambda image, _: fill[image].expand_as(batch.inputs[image])
        )[:, 0]

    def _fill(self, inputs: Tensor) -> Tensor:
        """What hides a site: (B, C, \\*sites), or (1, 3, 1, 1) if it is the same everywhere."""
        if self.fill == "blur":
            mean = self.classifier.fill(inputs, "mean")
            # Equal to blurring the normalised input: once the mean is taken off, the two differ by a scale
            # per channel, and blurring with zero padding is linear.
            return _blur(inputs - mean) + mean
        return self.classifier.fill(inputs, self.fill)


@register
class Insertion(_Causal):
    """Sites are shown on the fill, the most salient first."""

    name: ClassVar[str] = "insertion"
    title: ClassVar[str] = "Area under the probability as salient sites are shown (Petsiuk et al. 2018)"
    better: ClassVar[str] = "higher"
    inserts: ClassVar[bool] = True
    image_fill: ClassVar[Fill] = "blur"
    Parameters: ClassVar[type[Parameters]] = InsertionParameters


@register
class Deletion(_Causal):
    """Sites are hidden by the fill, the most salient first."""

    name: ClassVar[str] = "deletion"
    title: ClassVar[str] = "Area under the probability as salient sites are hidden (Petsiuk et al. 2018)"
    better: ClassVar[str] = "lower"
    inserts: ClassVar[bool] = False
    image_fill: ClassVar[Fill] = "mean"
    Parameters: ClassVar[type[Parameters]] = DeletionParameters


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
