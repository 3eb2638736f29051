"""Curves of the classifier's score as the sites of an input are shown or hidden in order of saliency.

Sites are the pixels of an image, the tokens of a text or the steps of a series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.black_box import check_fill
from explainers.models.modality import MODALITIES, Fill, ImageFill
from explainers.numerics.masking import kernel_blur, rows_of
from explainers.probes.masked_forward import MaskedForward, Score, target_probability
from tasks.metrics.base import MetricBatch
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks, sites_of

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

# In curves, a blur is RISE's, and not the classifier's own.
_BLUR_SIZE, _BLUR_SIGMA = 11, 5.0  # pixels
_RISE_BLUR = "the input blurred (11x11 kernel, sigma 5, zero padding after normalisation)"
_INFINITE = float("inf")
# Logits of different classifiers cannot be compared.
WITHIN: dict[str, Literal["classifier"] | None] = {"probability": None, "logit": "classifier"}
RANGES = {"probability": (0.0, 1.0), "logit": (-_INFINITE, _INFINITE)}


class CurveParameters(Parameters):
    """Parameters of metrics that show or hide sites step by step."""

    steps: int = Field(
        default=28,
        ge=2,
        le=1_000_000,
        description="number of steps: after step k, ceil(k N / steps) of N sites have changed",
    )
    fill: Fill | None = Field(default=None, description="what hides sites")
    output: Literal["probability", "logit"] = Field(
        default="probability",
        description="what is read for the explained class: its probability, or its logit, which has "
        "no bounds",
    )


class Curve:
    """Scores of inputs in which more and more sites are shown or hidden, the most salient first.

    Parameters
    ----------
    steps
        Number of steps; after step k, ceil(k N / steps) of N sites have changed.
    fill
        What hides sites. None: ``image_fill`` for images, and the first of the classifier's fills for others.
    image_fill
        The default fill for images.
    score
        A function from the classifier, (n, K) logits and (n,) targets to (n, ...) numbers.

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
        """The fill in words, for :attr:`Column.fill`."""
        return _RISE_BLUR if self.fill == "blur" else MODALITIES[self.classifier.modality].fills[self.fill]

    def counts(self, maps: Tensor) -> Tensor:
        """Return (B, steps + 1) int64: the number of changed sites before step 1 and after each step.

        It goes from 0 to the number of sites that have a value in the map, for each of (B, \\*sites) maps.
        """
        step = torch.arange(self.steps + 1, device=maps.device)
        return -(-step * sites_of(maps)[:, None] // self.steps)

    def points(self, batch: MetricBatch, maps: Tensor, *, inserts: bool) -> Tensor:
        """Score the inputs before the first step and after each step.

        Parameters
        ----------
        maps
            (B, \\*sites) prepared. Only the order of their values counts.
        inserts
            True: sites are shown on the fill. False: sites are hidden by it.

        Returns
        -------
        (B, steps + 1, ...)
            The scores; NaN for maps of NaN.
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
        """Score the inputs after each step but the last, as sites change from ``sides[0]`` to ``sides[1]``.

        The result is (B, steps - 1, ...).
        """
        order = ranks(maps, batch.seeds).view_as(maps).int()
        counts = self.counts(maps)[:, 1:-1]
        start, end = sides

        def compose(image: Tensor, variant: Tensor) -> Tensor:
            count = counts[image, variant].view(-1, *[1] * (order.ndim - 1))
            changed = (order.index_select(0, image) < count)[:, None]
            if not self.classifier.graded:
                return torch.where(changed, rows_of(end, image), rows_of(start, image))
            # With weights of exactly 0 and 1, lerp copies values, and is faster on the CPU than torch.where.
            return torch.lerp(rows_of(start, image), rows_of(end, image), changed.to(start.dtype))

        # A text of few tokens changes at some of the steps only: equal inputs are passed once.
        return masked.variants(self.steps - 1, compose, same=counts)

    def _whole(self, masked: MaskedForward, batch: MetricBatch) -> Tensor:
        """Score the inputs as they are, (B, ...); the batch knows the probabilities without a pass."""
        if self.score is target_probability:
            return batch.confidence
        return masked.variants(1, lambda image, _: batch.inputs[image])[:, 0]

    def _bare(self, masked: MaskedForward, batch: MetricBatch, fill: Tensor) -> Tensor:
        """Score the fill alone, (B, ...); a fill that is the same for all inputs takes a single pass."""
        if len(fill) == 1:
            logits = self.classifier.logits(fill.expand_as(batch.inputs[:1]))
            return self.score(self.classifier, logits.expand(len(batch.targets), -1), batch.targets)
        return masked.variants(1, lambda image, _: fill[image].expand_as(batch.inputs[image]))[:, 0]

    def _fill(self, inputs: Tensor) -> Tensor:
        """Return what hides a site: (B, C, \\*sites), or (1, 3, 1, 1) if it is the same everywhere."""
        if self.fill == "blur":
            mean = self.classifier.fill(inputs, "mean")
            # This equals blurring the normalised input: without the mean, the two differ by a scale per
            # channel, and blurring with zero padding is linear.
            return kernel_blur(inputs - mean, _BLUR_SIZE, _BLUR_SIGMA) + mean
        return self.classifier.fill(inputs, self.fill)
