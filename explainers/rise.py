"""RISE: random masks of the input, weighed by what the classifier still sees through them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.randomness import random_bits, uniform
from explainers.probes.masked_forward import MaskedForward, target_probability
from explainers.registry import register


class RiseParameters(base.PresetParameters):
    """Parameters of RISE; masks as in the paper (VGG-16), cells and probability as in the authors' release.

    ``preset = "fast"`` takes 500 masks: with MobileNetV2 on three photographs, its maps correlated 0.94, 0.90
    and 0.72 with those of 4000.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"masks": 500}

    masks: int = Field(4000, ge=1, description="N, forward passes an image; the paper has 8000 for ResNet-50")
    cells: int = Field(8, ge=2, description="s, cells a side of the binary grid that becomes a mask")
    probability: float = Field(0.5, gt=0, le=1, description="p, that a cell is shown")


@register
class Rise:
    """RISE (Petsiuk, Das and Saenko, BMVC 2018, arXiv 1806.07421, eq. 6), on the input's own pixels.

    A mask is a random binary grid of s x s cells, upsampled (bilinear) to (s + 1) x (s + 1) cells of the
    input and cropped to its size at a random offset of less than a cell. What is masked shows the mean that
    the classifier subtracts, zero after normalisation, as in the authors' release. The map is the sum of the
    masks, each times the target's probability on the input under it, over N p: p is the expectation of a mask
    at every pixel.

    Masks depend on the image's seed and their own number alone. They are made when an input is masked, and
    again when they are added up, and not kept.

    Details: ``forward_passes``, N.
    """

    name: ClassVar[str] = "rise"
    title: ClassVar[str] = "RISE: random masks weighed by the probability under them (BMVC 2018)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[base.Parameters]] = RiseParameters

    def __init__(self, classifier: Classifier, parameters: RiseParameters) -> None:
        self.classifier = classifier
        self.masks, self.probability = parameters.masks, parameters.probability
        self._factors = partial(
            factors, size=classifier.input_size, cells=parameters.cells, probability=parameters.probability
        )

    def describe(self) -> Description:
        return Description(self.classifier.input_size, {"forward_passes": Detail((), "int32")})

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        seeds = random_bits(batch.seeds, self.masks)
        hidden = self.classifier.fill(batch.inputs, "mean")

        def masked_inputs(image: Tensor, mask: Tensor) -> Tensor:
            rows, columns = self._factors(seeds[image, mask])
            return torch.lerp(hidden, batch.inputs[image], (rows @ columns)[:, None])

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_probability)
        scores = masked.variants(self.masks, masked_inputs)
        maps = self._weighed_sum(scores.float(), seeds, batch.forwards) / (self.masks * self.probability)
        return Explanation(maps, statuses_of(maps), {"forward_passes": masked.passes})

    def _weighed_sum(self, scores: Tensor, seeds: Tensor, forwards: int) -> Tensor:
        """(B, H, W) sum of an image's masks, each times its score, both (B, N).

        Factors of the masks are multiplied and added in one matrix product an image.
        """
        total = scores.new_zeros(len(scores), *self.classifier.input_size)
        step = max(1, forwards // len(scores))
        for part, weights in zip(seeds.split(step, 1), scores.split(step, 1), strict=True):
            rows, columns = self._factors(part.flatten())
            left = (rows * weights.reshape(-1, 1, 1)).unflatten(0, part.shape)
            total.baddbmm_(left.transpose(1, 2).flatten(2), columns.unflatten(0, part.shape).flatten(1, 2))
        return total


def factors(seeds: Tensor, size: tuple[int, int], cells: int, probability: float) -> tuple[Tensor, Tensor]:
    """The masks of (n,) seeds as factors (n, H, s) and (n, s, W): their products are the masks, in [0, 1]."""
    numbers = uniform(seeds, cells**2 + 2)
    grid = (numbers[:, 2:] < probability).float().unflatten(1, (cells, cells))
    rows, columns = (upsampling(numbers[:, axis], size[axis], cells) for axis in (0, 1))
    return rows @ grid, columns.mT


def upsampling(offsets: Tensor, size: int, cells: int) -> Tensor:
    """(n, size, cells) bilinear weights of the cells along one axis, for offsets (n,) in [0, 1) of a cell.

    A cell is ceil(size / cells) pixels. Pixel centres lie at half numbers, and the grid is mirrored about the
    centres of its border cells, as in the authors' release.
    """
    pixels = math.ceil(size / cells)
    places = (offsets * pixels).floor()[:, None] + torch.arange(size, device=offsets.device)
    centres = (places + 0.5) * (cells / ((cells + 1) * pixels)) - 0.5
    mirrored = (cells - 1) - ((cells - 1) - centres.abs()).abs()
    return (1 - (mirrored[..., None] - torch.arange(cells, device=offsets.device)).abs()).relu()
