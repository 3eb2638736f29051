"""Linear models of the classifier over cells of the input, shown or not, through Captum.

The cells are a fixed grid rather than superpixels (CHOICE): the same for every image, with one value of the
map each. A hidden cell shows the mean that the classifier subtracts. The score is the target's probability.
Captum fits one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from captum._utils.models.linear_model import SkLearnRidge  # where Captum's documentation has it from
from captum.attr import KernelShap, Lime
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.randomness import global_generators
from explainers.probes.masked_forward import MaskedForward, target_probability
from explainers.registry import register

RIDGE = 1.0  # penalty in LIME's authors' release


class _SurrogateParameters(base.PresetParameters):
    cells: int = Field(7, ge=2, description="cells a side")
    samples: int = Field(description="sets of cells passed")


class _Surrogate:
    """Coefficients of a linear model, one a cell."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})

    def __init__(self, classifier: Classifier, parameters: _SurrogateParameters) -> None:
        self.classifier, self.cells, self.samples = classifier, parameters.cells, parameters.samples
        if self.cells > min(classifier.input_size):
            raise ValueError(
                f"cells: {self.cells} a side do not fit into {classifier.input_size} pixels; choose fewer"
            )

    def describe(self) -> Description:
        return Description((self.cells, self.cells), {"forward_passes": Detail((), "int32")})

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_probability)
        fill = self.classifier.fill(batch.inputs, "mean").expand(1, -1, *self.classifier.input_size)
        numbers = torch.arange(self.cells**2, device=batch.inputs.device).view(1, 1, self.cells, self.cells)
        places = F.interpolate(numbers.float(), self.classifier.input_size).long()

        broken = torch.zeros_like(batch.targets, dtype=torch.bool)

        def coefficients(image: int) -> Tensor:
            def score(inputs: Tensor) -> Tensor:
                images = batch.targets.new_full((len(inputs),), image)
                found = masked.scores(images, lambda rows: inputs[rows])
                broken[image] |= ~found.isfinite().all()
                return found.nan_to_num()  # which the regression would refuse

            with global_generators(int(batch.seeds[image]), batch.inputs.device):
                found: Tensor = self.method(score).attribute(
                    batch.inputs[image : image + 1],
                    baselines=fill,
                    feature_mask=places,
                    n_samples=self.samples,
                    perturbations_per_eval=batch.forwards,
                    return_input_shape=False,
                )
            return found.view(self.cells, self.cells)

        maps = torch.stack([coefficients(image) for image in range(len(batch))]).to(fill)
        maps[broken] = torch.nan
        return Explanation(maps, statuses_of(maps), {"forward_passes": masked.passes})

    def method(self, score: Callable[[Tensor], Tensor]) -> Lime:
        """Captum's, on ``score`` from inputs (n, 3, H, W) to (n,)."""
        raise NotImplementedError


class KernelShapParameters(_SurrogateParameters):
    """Parameters of kernel SHAP. ``preset = "fast"`` takes 512 samples of 5x5 cells.

    Maps are noisy: with MobileNetV2 on two photographs, those of two seeds correlated 0.59 and 0.54 by
    default, 0.74 and 0.61 with the preset.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"cells": 5, "samples": 512}

    samples: int = Field(
        2146, ge=3, description="sets of cells passed; the authors' package takes 2048 and 2 more a cell"
    )


@register
class KernelShapOnCells(_Surrogate):
    """Kernel SHAP (Lundberg and Lee, NIPS 2017, theorem 2): Shapley values of cells, by weighted regression.

    Sets of cells are drawn in proportion to the Shapley kernel; none and all are always among them, with a
    weight (Captum's) that all but forces the map to add up to the probability on the input less that with
    every cell hidden.

    Details: ``forward_passes``, one a sample.
    """

    name: ClassVar[str] = "kernel_shap"
    title: ClassVar[str] = "Kernel SHAP: Shapley values of cells by weighted regression (NIPS 2017)"
    Parameters: ClassVar[type[base.Parameters]] = KernelShapParameters

    def method(self, score: Callable[[Tensor], Tensor]) -> Lime:
        return KernelShap(score)


class LimeParameters(_SurrogateParameters):
    """Parameters of LIME, those of the authors' release for images.

    ``preset = "fast"`` takes 256 samples: with MobileNetV2 on two photographs, its maps correlated 0.78 and
    0.77 with those of 1000.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"samples": 256}

    samples: int = Field(1000, ge=2, description="sets of cells passed")
    kernel_width: float = Field(0.25, gt=0, description="of the exponential kernel on the cosine distance")


@register
class LimeOnCells(_Surrogate):
    """LIME (Ribeiro, Singh and Guestrin, KDD 2016, section 3.4): a ridge regression near the input.

    A sample hides each cell with probability 1/2; it weighs exp(-d^2 / (2 width^2)), where d is the cosine
    distance of its cells from all cells. As in the authors' release the regression has a ridge penalty of 1
    and keeps all cells, where the paper selects K of them by a lasso.

    Details: ``forward_passes``, one a sample.
    """

    name: ClassVar[str] = "lime"
    title: ClassVar[str] = "LIME: a weighted ridge regression on cells shown or hidden (KDD 2016)"
    Parameters: ClassVar[type[base.Parameters]] = LimeParameters

    def __init__(self, classifier: Classifier, parameters: LimeParameters) -> None:
        super().__init__(classifier, parameters)
        self.kernel_width = parameters.kernel_width

    def method(self, score: Callable[[Tensor], Tensor]) -> Lime:
        return Lime(score, SkLearnRidge(alpha=RIDGE), self._similarity)

    def _similarity(self, original: Tensor, perturbed: Tensor, shown: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        # Asked for once a sample: it stays on the device, which would have to wait for the host otherwise.
        distance = 1 - shown.float().mean().double().sqrt()  # a 0/1 vector's cosine with all ones
        return torch.exp(-(distance**2) / (2 * self.kernel_width**2)).float()[None]
