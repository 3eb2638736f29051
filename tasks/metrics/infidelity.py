"""Infidelity: whether the saliency of a region says how much the classifier loses without it.

Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from explainers.base import Parameters
from explainers.models.black_box import check_fill
from explainers.models.modality import ImageFill
from explainers.numerics.masking import rows_of
from explainers.numerics.randomness import seed_of, uniform
from explainers.probes.masked_forward import MaskedForward, target_logit
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

_SQUARES = seed_of("infidelity")  # keeps the squares apart from tie-breaks


class InfidelityParameters(Parameters):
    """``samples`` random squares of each image are replaced by ``fill``, one at a time.

    Their sides are 1 to ``largest`` times the shorter side of the image. The authors' code takes all squares
    of sides 1 to 10 in images of 28x28 pixels: CHOICE: the default is in proportion.
    """

    samples: int = Field(default=100, ge=2)
    largest: float = Field(default=0.36, gt=0, le=1)
    fill: ImageFill = "mean"


@register
class Infidelity:
    """The mean over random squares of (beta s - d)^2: s the map's sum in the square, d what its loss costs.

    d is the target's logit on the image less that on the image with the square replaced: definition 2.1 with
    their square perturbation, the removed pixels counting 1 each in s. As in the authors' code maps of any
    scale are made comparable: beta = mean(d s) / mean(s^2) is the best factor for each image, so that the
    values are squared logits of the classifier, and compare between explainers of one classifier alone.

    CHOICE: sides are drawn uniformly, then places, of all where the square lies in the image. CHOICE: maps
    are those that all metrics score, rectified and stretched to [0, 1]. They cannot say that a region speaks
    against the class, and the paper's other perturbation, signed noise, would ask them to.

    A map of zeros has beta = 0, and the mean of d^2, which no map exceeds; one of ones says that a square
    costs in proportion to its area, which is a strong control. On 32 photographs of 32x32 pixels and a small
    network zeros had 4.0; ones, noise and gradients 2.2; and occlusion 1.5.
    """

    name: ClassVar[str] = "infidelity"
    title: ClassVar[str] = "How far saliency is from what lost squares cost, squared (Yeh et al. 2019)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[Parameters]] = InfidelityParameters

    def __init__(self, classifier: BlackBox, parameters: InfidelityParameters) -> None:
        check_fill(classifier, parameters.fill)
        self.classifier, self.parameters = classifier, parameters

    def columns(self) -> list[Column]:
        fill = f"squares replaced by {self.parameters.fill}"
        return [Column("infidelity", 0.0, float("inf"), "lower", fill, within="classifier")]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps; NaN for maps of NaN."""
        squares = self.squares(batch.seeds, (maps.shape[1], maps.shape[2]))
        cost, inside = self._costs(batch, squares), sums(maps, squares)
        beta = (cost * inside).mean(1) / inside.square().mean(1)
        beta = beta.masked_fill((inside == 0).all(1), 0.0)
        found = (beta[:, None] * inside - cost).square().mean(1)
        return Scores({"infidelity": found.float()})

    def squares(self, seeds: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, samples, 4) int64 of each image's seed: first row, first column, and those behind the last."""
        numbers = uniform(seeds ^ _SQUARES, 3 * self.parameters.samples).view(len(seeds), -1, 3)
        largest = max(1, round(self.parameters.largest * min(size)))
        side = 1 + (numbers[..., 0] * largest).long()
        room = torch.tensor(size, device=seeds.device) - side[..., None] + 1
        start = (numbers[..., 1:] * room).long()
        return torch.cat([start, start + side[..., None]], 2)

    def _costs(self, batch: MetricBatch, squares: Tensor) -> Tensor:
        """(B, samples) float64: the target's logit on the inputs less that without each square."""
        fill = self.classifier.fill(batch.inputs, self.parameters.fill)
        places = [torch.arange(size, device=squares.device) for size in batch.inputs.shape[2:]]
        every = F.pad(squares, (0, 0, 1, 0))  # before the first square an empty one: the whole input

        def compose(image: Tensor, variant: Tensor) -> Tensor:
            edges = every[image, variant]
            rows, columns = (
                (places[axis] >= edges[:, axis, None]) & (places[axis] < edges[:, axis + 2, None])
                for axis in (0, 1)
            )
            lost = rows[:, None, :, None] & columns[:, None, None]
            return torch.where(lost, rows_of(fill, image), batch.inputs[image])

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_logit)
        logits = masked.variants(every.shape[1], compose).double()
        return logits[:, :1] - logits[:, 1:]


def sums(maps: Tensor, squares: Tensor) -> Tensor:
    """(B, n) float64 sums of (B, H, W) maps in (B, n, 4) squares, given as by :meth:`Infidelity.squares`."""
    table = F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    width = table.shape[2]
    top, left, bottom, right = squares.unbind(2)

    def up_to(row: Tensor, column: Tensor) -> Tensor:
        return table.flatten(1).gather(1, row * width + column)

    return up_to(bottom, right) - up_to(top, right) - up_to(bottom, left) + up_to(top, left)
