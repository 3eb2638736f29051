"""Controls: maps that do not depend on the classifier, which every explainer should beat."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.black_box import BlackBox
from explainers.numerics.randomness import uniform
from explainers.registry import register

_LUMINANCE = (0.299, 0.587, 0.114)  # weights of R, G and B by ITU-R BT.601


class _Control:
    """A control whose maps have the size of the input."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: BlackBox, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.grid = classifier.input_shape[1:]

    def describe(self) -> Description:
        return Description(self.grid)

    def explain(self, batch: Batch) -> Explanation:
        maps = self.maps(batch)
        return Explanation(maps, statuses_of(maps))

    def maps(self, batch: Batch) -> Tensor:
        """Return the (B, \\*grid) float32 maps."""
        raise NotImplementedError


@register
class Random(_Control):
    """Uniform noise in [0, 1), independent per pixel or token, as in ROAR (Hooker et al., NeurIPS 2019)."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Control: uniform noise (Hooker et al., 2019)"

    def maps(self, batch: Batch) -> Tensor:
        return uniform(batch.seeds, math.prod(self.grid)).unflatten(1, self.grid)


class CenterGaussianParameters(base.Parameters):
    """Parameters of the centred Gaussian."""

    sigma: float = Field(
        0.25, gt=0, le=1000, description="standard deviation as a fraction of the input's short side"
    )


@register
class CenterGaussian(_Control):
    """A Gaussian around the centre of the image, with the value 1 at the centre.

    It is a baseline of weakly supervised localisation (Choe et al., CVPR 2020), and a strong one, because
    photographers put their objects in the centre.
    """

    name: ClassVar[str] = "center_gaussian"
    title: ClassVar[str] = "Control: a Gaussian around the centre (Choe et al., 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[base.Parameters]] = CenterGaussianParameters

    def __init__(self, classifier: BlackBox, parameters: CenterGaussianParameters) -> None:
        super().__init__(classifier, parameters)
        self.sigma = parameters.sigma

    def maps(self, batch: Batch) -> Tensor:
        return center_gaussian(self.grid, self.sigma).to(batch.inputs.device).repeat(len(batch), 1, 1)


def center_gaussian(grid: tuple[int, ...], sigma: float) -> Tensor:
    """Return an (H, W) float32 Gaussian; ``sigma`` is a fraction of the short side."""
    y, x = (_gaussian(size, sigma * min(grid)) for size in grid)
    return torch.outer(y, x)


def _gaussian(size: int, sigma: float) -> Tensor:
    offset = torch.arange(size) - (size - 1) / 2
    return torch.exp(-(offset**2) / (2 * sigma**2))


@register
class Sobel(_Control):
    """The gradient magnitude of the luminance by Sobel's operator (1968), in luminance per pixel.

    The luminance of inputs that have another number of channels than three is the mean of their channels.

    Edge detectors look like good explanations but explain nothing (Adebayo et al., NeurIPS 2018). Beyond the
    border, the border pixels are repeated.
    """

    name: ClassVar[str] = "sobel"
    title: ClassVar[str] = "Control: edges by Sobel's operator (Adebayo et al., 2018)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})

    def maps(self, batch: Batch) -> Tensor:
        channels = batch.inputs.shape[1]
        weights = batch.inputs.new_tensor(_LUMINANCE if channels == 3 else [1 / channels] * channels)
        luminance = torch.einsum("c,bchw->bhw", weights, batch.inputs)
        padded = F.pad(luminance[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        return torch.hypot(_slope(padded), _slope(padded.mT).mT)


def _slope(padded: Tensor) -> Tensor:
    """Return Sobel's (B, h, w) change per pixel from left to right in padded images (B, h + 2, w + 2)."""
    across = padded[:, :, 2:] - padded[:, :, :-2]
    return (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 8


@register
class AllOnes(_Control):
    """A map of ones: it shows what a metric gives to a map that prefers nothing.

    The grid has one cell, since one value is enough. Every map has the status ``constant``.
    """

    name: ClassVar[str] = "all_ones"
    title: ClassVar[str] = "Control: a map of ones"

    def __init__(self, classifier: BlackBox, parameters: base.Parameters) -> None:
        super().__init__(classifier, parameters)
        self.grid = (1,) * len(self.grid)

    def maps(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch), *self.grid, device=batch.inputs.device)
