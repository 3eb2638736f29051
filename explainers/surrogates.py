"""Linear models that predict the classifier's score from which cells of the input are shown, through Captum.

CHOICE: the cells form a fixed grid, not superpixels; it is the same for every image, and each cell is one
value of the map. A hidden cell shows the mean that the classifier subtracts. The score is the target's
probability. Captum fits one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from captum._utils.models.linear_model import SkLearnRidge  # as Captum's documentation imports it
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
    """Parameters of a linear model over cells."""

    cells: int = Field(7, ge=2, le=64, description="number of cells per side of the grid")
    samples: int = Field(description="number of sets of cells, each a forward pass")


class _Surrogate:
    """A method whose map is the coefficients of a linear model, one per cell."""

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
                # The regression refuses NaN and infinite scores: the map becomes NaN afterwards instead.
                broken[image] |= ~found.isfinite().all()
                return found.nan_to_num()

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
        """Return Captum's method for a function ``score`` from inputs (n, 3, H, W) to scores (n,)."""
        raise NotImplementedError


class KernelShapParameters(_SurrogateParameters):
    """Parameters of kernel SHAP. ``preset = "fast"`` takes 512 samples of 5x5 cells.

    The maps are noisy: with MobileNetV2 on two photographs, the maps of two seeds correlated 0.59 and 0.54
    with the defaults, and 0.74 and 0.61 with the preset.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"cells": 5, "samples": 512}

    samples: int = Field(
        2146,
        ge=3,
        le=1_000_000,
        description="number of sets of cells, each a forward pass; the authors' package takes 2048 and 2 "
        "more per cell",
    )


@register
class KernelShapOnCells(_Surrogate):
    """Kernel SHAP (Lundberg and Lee, NIPS 2017, theorem 2): Shapley values of cells by weighted regression.

    Sets of cells are drawn in proportion to the Shapley kernel. The empty set and the full set are always
    among them, with Captum's large weight. It makes the values of the map add up, almost exactly, to the
    probability on the input minus the probability with every cell hidden.

    Details: ``forward_passes``, one per sample.
    """

    name: ClassVar[str] = "kernel_shap"
    title: ClassVar[str] = "Kernel SHAP: Shapley values of cells by weighted regression (NIPS 2017)"
    Parameters: ClassVar[type[base.Parameters]] = KernelShapParameters

    def method(self, score: Callable[[Tensor], Tensor]) -> Lime:
        return KernelShap(score)


class LimeParameters(_SurrogateParameters):
    """Parameters of LIME. The defaults are those of the authors' release for images.

    ``preset = "fast"`` takes 256 samples. With MobileNetV2 on two photographs, its maps correlated 0.78 and
    0.77 with those of 1000 samples.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"samples": 256}

    samples: int = Field(1000, ge=2, le=1_000_000, description="number of sets of cells, each a forward pass")
    kernel_width: float = Field(
        0.25,
        gt=0,
        le=1000,
        description="width of the exponential kernel, as a cosine distance between sets of cells",
    )


@register
class LimeOnCells(_Surrogate):
    """LIME (Ribeiro, Singh and Guestrin, KDD 2016, section 3.4): a ridge regression near the input.

    A sample hides each cell with probability 1/2. The weight of a sample is exp(-d^2 / (2 width^2)), where d
    is the cosine distance between the cells that it shows and all cells. As in the authors' release, the
    regression has a ridge penalty of 1 and keeps all cells; the paper selects K of them by a lasso.

    Details: ``forward_passes``, one per sample.
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
        # Captum calls this once per sample. The result stays on the device: a float would make the host wait.
        distance = 1 - shown.float().mean().double().sqrt()  # the cosine of a 0/1 vector with all ones
        return torch.exp(-(distance**2) / (2 * self.kernel_width**2)).float()[None]
