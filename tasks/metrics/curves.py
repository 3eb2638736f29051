"""What a classifier says of an input while its sites are shown, or hidden, in order of saliency.

Sites are an image's pixels, a text's tokens or the steps of a series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.black_box import check_fill
from explainers.models.modality import MODALITIES, Fill, ImageFill
from explainers.numerics.masking import rows_of
from explainers.probes.masked_forward import MaskedForward, Score, target_probability
from tasks.metrics.base import MetricBatch
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks, sites_of

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

# Here a blur is RISE's, not the classifier's.
_RISE_BLUR = "the input blurred (11x11 kernel, sigma 5, zero padding after normalisation)"
_INFINITE = float("inf")
# Logits of one classifier say nothing beside another's.
WITHIN: dict[str, Literal["classifier"] | None] = {"probability": None, "logit": "classifier"}
RANGES = {"probability": (0.0, 1.0), "logit": (-_INFINITE, _INFINITE)}


class CurveParameters(Parameters):
    """After step k of ``steps`` ceil(k N / steps) of N sites have changed; ``fill`` hides sites.

    ``output`` is what is read of the explained class: its softmax probability, or its logit.
    """

    steps: int = Field(default=28, ge=2)
    fill: Fill | None = None
    output: Literal["probability", "logit"] = "probability"


class Curve:
    """Scores of inputs of which more and more sites have changed sides, the most salient first.

    Parameters
    ----------
    steps
        How many; after step k ceil(k N / steps) of N sites have changed.
    fill
        What hides sites. None: ``image_fill`` for images, and for others the first of the classifier's.
    score
        From (n, K) logits and (n,) targets to (n, ...) numbers.

    Raises
    ------
    ValueError
        If the classifier's inputs do not have this fill.
    """

    def __init__(
        self, classifier: BlackBox, steps: int, fill: Fill | None, image_fill: ImageFill, score: Score
    ) -> None:
        self.classifier, self.steps, self.score = classifier, steps, score
        own = image_fill if classifier.modality == "image" else classifier.fills[0]
        self.fill: str = fill or own
        check_fill(classifier, self.fill)

    @property
    def filled_with(self) -> str:
        """The fill in words."""
        return _RISE_BLUR if self.fill == "blur" else MODALITIES[self.classifier.modality].fills[self.fill]

    def counts(self, maps: Tensor) -> Tensor:
        """(B, steps + 1) int64: how many sites of each of (B, \\*sites) maps have changed, none to all."""
        step = torch.arange(self.steps + 1, device=maps.device)
        return -(-step * sites_of(maps)[:, None] // self.steps)

    def points(self, batch: MetricBatch, maps: Tensor, *, inserts: bool) -> Tensor:
        """(B, steps + 1, ...) scores before the first step and after each; NaN for maps of NaN.

        Parameters
        ----------
        maps
            (B, \\*sites) prepared, whose order alone counts.
        inserts
            Whether sites are shown on the fill, or else hidden by it.
        """
        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, self.score)
        fill = self._fill(batch.inputs)
        between = self._between(
            masked, batch, maps, (fill, batch.inputs) if inserts else (batch.inputs, fill)
        )
        whole, bare = self._whole(masked, batch), self._bare(masked, batch, fill)
        first, last = (bare, whole) if inserts else (whole, bare)
        points = torch.cat([first[:, None], between, last[:, None]], 1)
        points[unreadable(maps)] = torch.nan
        return points

    def _between(
        self, masked: MaskedForward, batch: MetricBatch, maps: Tensor, sides: tuple[Tensor, Tensor]
    ) -> Tensor:
        """(B, steps - 1, ...) scores while sites change from the first of ``sides`` to the second."""
        order = ranks(maps, batch.seeds).view_as(maps).int()
        counts = self.counts(maps)[:, 1:-1]
        start, end = sides

        def compose(image: Tensor, variant: Tensor) -> Tensor:
            count = counts[image, variant].view(-1, *[1] * (order.ndim - 1))
            changed = (order.index_select(0, image) < count)[:, None]
            if not self.classifier.graded:
                return torch.where(changed, rows_of(end, image), rows_of(start, image))
            # With weights of exactly 0 and 1 this copies, and is faster on the CPU than torch.where.
            return torch.lerp(rows_of(start, image), rows_of(end, image), changed.to(start.dtype))

        # A text of few tokens changes at some of the steps only.
        return masked.variants(self.steps - 1, compose, same=counts)

    def _whole(self, masked: MaskedForward, batch: MetricBatch) -> Tensor:
        """(B, ...) scores of the inputs as they are, which the batch may know."""
        if self.score is target_probability:
            return batch.confidence
        return masked.variants(1, lambda image, _: batch.inputs[image])[:, 0]

    def _bare(self, masked: MaskedForward, batch: MetricBatch, fill: Tensor) -> Tensor:
        """(B, ...) scores where nothing of the input is left; one pass for a common fill."""
        if len(fill) == 1:
            logits = self.classifier.logits(fill.expand_as(batch.inputs[:1]))
            return self.score(logits.expand(len(batch.targets), -1), batch.targets)
        return masked.variants(1, lambda image, _: fill[image].expand_as(batch.inputs[image]))[:, 0]

    def _fill(self, inputs: Tensor) -> Tensor:
        """What hides a site: (B, C, \\*sites), or (1, 3, 1, 1) if it is the same everywhere."""
        if self.fill == "blur":
            mean = self.classifier.fill(inputs, "mean")
            # Equal to blurring the normalised input: once the mean is taken off, the two differ by a scale
            # per channel, and blurring with zero padding is linear.
            return _blur(inputs - mean) + mean
        return self.classifier.fill(inputs, self.fill)


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
