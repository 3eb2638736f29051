"""Infidelity: how far the saliency of regions is from what the classifier loses without them.

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

_SQUARES = seed_of("infidelity")  # makes the squares independent of tie-breaks


class InfidelityParameters(Parameters):
    """Parameters of infidelity."""

    samples: int = Field(
        default=100,
        ge=2,
        le=1_000_000,
        description="number of random squares per image, which are replaced one at a time",
    )
    largest: float = Field(
        default=0.36,
        gt=0,
        le=1,
        description="side of the largest square, as a share of the image's shorter side; the smallest has a "
        "side of 1 pixel. CHOICE: the default is in proportion to the authors' code, which takes all squares "
        "with sides of 1 to 10 pixels in images of 28x28 pixels",
    )
    fill: ImageFill = Field(default="mean", description="what replaces a square")


@register
class Infidelity:
    """The mean of (beta s - d)^2 over random squares: s is the map's sum in a square, d the loss without it.

    d is the target's logit on the image minus the logit on the image with the square replaced. This is
    definition 2.1 with the authors' square perturbation, where each removed pixel counts 1 in s. As in the
    authors' code, maps of any scale are made comparable: beta = mean(d s) / mean(s^2) is the best factor for
    each image. The values are squared logits of the classifier, so they can be compared between explainers of
    the same classifier only.

    CHOICE: the side of a square is drawn uniformly, and then its position, uniformly among those where the
    square lies in the image. CHOICE: maps are those that all metrics score, rectified and stretched to
    [0, 1]. They cannot express that a region is evidence against the class, which the paper's other
    perturbation, signed noise, would require.

    A map of zeros has beta = 0 and the value mean(d^2), which no map exceeds. A map of ones says that a
    square costs in proportion to its area, which is a strong control. On 32 photographs of 32x32 pixels and a
    small network, zeros had 4.0; ones, noise and gradients had 2.2; and occlusion had 1.5.
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
        squares = self.squares(batch.seeds, (maps.shape[1], maps.shape[2]))
        cost, inside = self._costs(batch, squares), sums(maps, squares)
        beta = (cost * inside).mean(1) / inside.square().mean(1)
        beta = beta.masked_fill((inside == 0).all(1), 0.0)
        found = (beta[:, None] * inside - cost).square().mean(1)
        return Scores({"infidelity": found.float()})

    def squares(self, seeds: Tensor, size: tuple[int, int]) -> Tensor:
        """Draw squares from the images' seeds (B,).

        Parameters
        ----------
        size
            (H, W) of the images, in pixels.

        Returns
        -------
        (B, samples, 4) int64
            First row, first column, and the row and the column after the last.
        """
        numbers = uniform(seeds ^ _SQUARES, 3 * self.parameters.samples).view(len(seeds), -1, 3)
        largest = max(1, round(self.parameters.largest * min(size)))
        side = 1 + (numbers[..., 0] * largest).long()
        room = torch.tensor(size, device=seeds.device) - side[..., None] + 1
        start = (numbers[..., 1:] * room).long()
        return torch.cat([start, start + side[..., None]], 2)

    def _costs(self, batch: MetricBatch, squares: Tensor) -> Tensor:
        """Return the target's logit on the inputs minus that without each square: (B, samples) float64."""
        fill = self.classifier.fill(batch.inputs, self.parameters.fill)
        places = [torch.arange(size, device=squares.device) for size in batch.inputs.shape[2:]]
        every = F.pad(squares, (0, 0, 1, 0))  # an empty square comes first: it gives the whole input

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
    """Sum (B, H, W) maps in (B, n, 4) squares, given as by :meth:`Infidelity.squares`: (B, n) float64."""
    # A summed-area table takes four look-ups per square, whatever its size.
    table = F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    width = table.shape[2]
    top, left, bottom, right = squares.unbind(2)

    def up_to(row: Tensor, column: Tensor) -> Tensor:
        return table.flatten(1).gather(1, row * width + column)

    return up_to(bottom, right) - up_to(top, right) - up_to(bottom, left) + up_to(top, left)
