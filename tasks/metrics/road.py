"""ROAD: what is left of the class when pixels are removed in order and made up from those around them.

Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.probes.masked_forward import MaskedForward
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.composites import probability_and_prediction
from tasks.metrics.imputation import RADIUS, Imputation, imputed, normal
from tasks.metrics.levels import DISTINCT
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

_NOISE = 0.01  # Rong et al.'s


class RoadParameters(Parameters):
    """``levels``: percentages of pixels that are removed, in both orders; by default as in the paper's code.

    ``imputation`` makes them up: ``linear`` from their neighbours, or ``telea``, inpainting as in P-TAME's
    evaluation. ``noise``: standard deviation of what is added to them, for pixels in [0, 1]; by default 0.01
    to linear ones and none to inpainted ones, as there.
    """

    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], Field(min_length=1), DISTINCT] = Field(
        default=(10, 20, 30, 40, 50, 70, 90)
    )
    imputation: Imputation = "linear"
    noise: float | None = Field(default=None, ge=0, le=1)


@register
class Road:
    """The target's probability, and whether it is the prediction, on images without some of their pixels.

    Removed are the most relevant pixels first (MoRF), or the least relevant ones (LeRF). A level is the share
    that is removed in either order; in the paper's code and pytorch-grad-cam that of LeRF is kept. At least
    one pixel is removed and one is left. Which they are is decided by exact ranks, equal values being in the
    order of the image's seed: maps that are flat remove pixels at random.

    Values are means over the levels, and curves have a point a level: ``road_morf`` and ``road_lerf`` of the
    probability, ``road_morf_accuracy`` and ``road_lerf_accuracy`` of being the prediction, 0 or 1. The means
    of the latter over images are the paper's curves, but for the explained class instead of the label: the
    same where labels are explained. ``road_combined`` is (road_lerf - road_morf) / 2, as in pytorch-grad-cam.

    Made up from its surroundings, an object's hole shows no shape: on the demo's digits a map of the true
    pixels beats every control by far, as it does not in deletion.

    CHOICE: the noise is drawn once an image, for all its pixels, levels and both orders, which then differ in
    nothing but what is removed. What is made up with noise is not clamped to [0, 1]: nor is it in the paper's
    code.
    """

    name: ClassVar[str] = "road"
    title: ClassVar[str] = (
        "Probability and accuracy as pixels are removed and imputed (ROAD, Rong et al. 2022)"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[Parameters]] = RoadParameters

    def __init__(self, classifier: BlackBox, parameters: RoadParameters) -> None:
        self.classifier, self.levels, self.how = classifier, parameters.levels, parameters.imputation
        own = _NOISE if self.how == "linear" else 0.0
        self.noise = own if parameters.noise is None else parameters.noise

    def columns(self) -> list[Column]:
        ways = {
            "linear": "weighted means of their neighbours",
            "telea": f"inpainting (Telea, radius {RADIUS})",
        }
        noise = f", with noise of {self.noise:g}" if self.noise else ""
        fill = f"removed pixels made up: {ways[self.how]}{noise}"
        columns = [
            Column(f"road_{order}{what}", 0.0, 1.0, better, fill)
            for what in ("", "_accuracy")
            for order, better in (("morf", "lower"), ("lerf", "higher"))
        ]
        return [*columns, Column("road_combined", -0.5, 0.5, "higher", fill)]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps; maps of NaN have values and curves of NaN."""
        found = self._found(batch, maps).unflatten(1, (2, -1))  # (B, 2, levels, 2)
        found[unreadable(maps)] = torch.nan
        names = [column.name for column in self.columns()]
        curves = {
            name: found[:, order, :, what]
            for name, (what, order) in zip(names, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=False)
        }
        values = {name: curve.mean(1) for name, curve in curves.items()}
        values["road_combined"] = (values["road_lerf"] - values["road_morf"]) / 2
        return Scores(values, curves)

    def _found(self, batch: MetricBatch, maps: Tensor) -> Tensor:
        """(B, 2 levels, 2): the target's probability, and whether it is the prediction; MoRF, then LeRF."""
        order = ranks(maps, batch.seeds)
        pixels, levels = order.shape[1], len(self.levels)
        shares = torch.tensor(self.levels, device=maps.device) / 100
        counts = (shares * pixels).round().clamp(max=pixels - 1).clamp(min=1)
        noise = self.noise * normal(batch.seeds, batch.inputs.shape[1:]) if self.noise else None

        def compose(image: Tensor, variant: Tensor) -> Tensor:
            rank = order.index_select(0, image)
            rank = torch.where((variant < levels)[:, None], rank, pixels - 1 - rank)
            removed = (rank < counts[variant % levels, None]).view(-1, *maps.shape[1:])
            images = imputed(batch.inputs.index_select(0, image), removed, self.how)
            return images if noise is None else images.addcmul_(noise[image], removed[:, None])

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, probability_and_prediction)
        return masked.variants(2 * levels, compose)
