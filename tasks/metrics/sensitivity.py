"""Sensitivity: how much a map changes if the input changes a little.

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
    """Parameters of sensitivity. CHOICE: both defaults are Captum's.

    Captum's 0.02 is in the units of the network's input. These are mostly normalised, where 0.02 is a smaller
    change than for pixels in [0, 1].
    """

    radius: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="largest change of a pixel, in units of pixels in [0, 1]; 0.02 is about five grey levels "
        "of 255",
    )
    samples: int = Field(default=10, ge=1, le=1_000_000, description="number of noisy copies per image")


@register
class Sensitivity:
    """The largest and the mean ||map(x + d) - map(x)|| / ||map(x)|| over noise d, with Euclidean norms.

    The noise is uniform in [-radius, radius], and independent for every pixel and channel. Max-sensitivity
    (the authors' definition 2) is estimated from the samples, so it can only be too small. The authors do not
    divide by the norm. Captum and Quantus do, so that maps of any scale can be compared. CHOICE: noisy pixels
    are clamped to [0, 1], as explainers expect them, so black and white pixels lose half of the noise.
    CHOICE: maps are those that all metrics score, rectified and stretched to [0, 1], so a mere change of
    scale counts as no change.

    The class and the explainer's own random numbers stay the same. Constant maps have the best value, and
    smooth maps have a good one, whatever they explain: read this metric beside those of faithfulness.
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
        """Score maps; maps of zeros are NaN, since their norm is 0, and so are inputs with a copy of NaN.

        A noisy copy has a map of NaN if the explainer fails, as those of the predicted class do if the noise
        changes the prediction. A copy whose map is zero counts as 1.
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
        """Return the batch's inputs (B, 3, H, W) with the noise of one sample, drawn per image."""
        inputs = batch.inputs
        seeds = batch.seeds ^ seed_of("sensitivity", sample)
        noise = uniform(seeds, inputs[0].numel()).view_as(inputs)
        return (inputs + self.radius * (2 * noise - 1)).clamp(0, 1)
