"""Sensitivity: how far a map moves when the input moves a little.

Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.numerics.randomness import seed_of, uniform
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class SensitivityParameters(Parameters):
    """``samples`` noisy copies of each image, none of whose pixels moves by more than ``radius``.

    The radius is in pixels in [0, 1]. CHOICE: Captum's two defaults; 0.02 is about five grey levels of 255.
    Captum's 0.02 is in whatever units the network is given, mostly normalised ones, where it is less.
    """

    radius: float = Field(default=0.02, gt=0, le=1)
    samples: int = Field(default=10, ge=1)


@register
class Sensitivity:
    """||map(x + d) - map(x)|| / ||map(x)||, Euclidean norms, over noise d: the largest and the mean.

    The noise is uniform in [-radius, radius], independent for every pixel and channel. Max-sensitivity (their
    definition 2) is estimated from the samples, and is too small by what they miss. They do not divide by the
    norm; Captum and Quantus do, and maps of any scale then compare. CHOICE: noisy pixels are kept in [0, 1],
    as explainers expect them; of black and white ones half of the noise is lost. CHOICE: maps are those that
    all metrics score, rectified and stretched to [0, 1], so that a mere change of scale is none.

    The class and the explainer's own random numbers stay as they were. Constant maps have the best value, and
    smooth ones a good one, whatever they explain: to be read beside faithfulness.
    """

    name: ClassVar[str] = "sensitivity"
    title: ClassVar[str] = "Relative change of the map under small noise (Yeh et al. 2019)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.EXPLAINER})
    Parameters: ClassVar[type[Parameters]] = SensitivityParameters

    def __init__(self, classifier: BlackBox, parameters: SensitivityParameters) -> None:  # noqa: ARG002
        self.radius, self.samples = parameters.radius, parameters.samples

    def columns(self) -> list[Column]:
        fill = f"uniform noise within {self.radius:g} of each pixel, kept in [0, 1]"
        return [
            Column(name, 0.0, float("inf"), "lower", fill)
            for name in ("max_sensitivity", "average_sensitivity")
        ]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps.

        NaN for maps of zeros, which have no norm, and for maps of NaN; also where a noisy copy has a map of
        NaN, as explainers of the predicted class give it once noise changes the prediction. A copy whose map
        is zero counts as 1.
        """
        rows = torch.arange(len(maps), device=maps.device)
        norms = maps.flatten(1).norm(dim=1)
        changes = [
            (batch.explainer(self._noisy(batch, sample), rows) - maps).flatten(1).norm(dim=1) / norms
            for sample in range(self.samples)
        ]
        found = torch.stack(changes).masked_fill(norms == 0, torch.nan)
        return Scores({"max_sensitivity": found.amax(0), "average_sensitivity": found.mean(0)})

    def _noisy(self, batch: MetricBatch, sample: int) -> Tensor:
        """(B, 3, H, W) the batch's inputs with noise of their own."""
        inputs = batch.inputs
        seeds = batch.seeds ^ seed_of("sensitivity", sample)
        noise = uniform(seeds, inputs[0].numel()).view_as(inputs)
        return (inputs + self.radius * (2 * noise - 1)).clamp(0, 1)
