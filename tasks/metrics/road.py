"""ROAD: the target's probability as pixels are removed by saliency and filled in from those around them.

Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.probes.masked_forward import MaskedForward
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.composites import probability_and_prediction
from tasks.metrics.imputation import RADIUS, Imputation, imputed, normal
from tasks.metrics.levels import DISTINCT, LISTED
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

_NOISE = 0.01  # as in the code of Rong et al.


class RoadParameters(Parameters):
    """Parameters of ROAD."""

    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], LISTED, DISTINCT] = Field(
        default=(10, 20, 30, 40, 50, 70, 90),
        description="percentages of pixels that are removed, in both orders; the default is that of the "
        "paper's code",
    )
    imputation: Imputation = Field(
        default="linear",
        description="how removed pixels are filled in: linear, from their neighbours; telea, by inpainting, "
        "as in P-TAME's evaluation",
    )
    noise: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="standard deviation of the noise that is added to filled-in pixels, in units of pixels "
        "in [0, 1]; by default 0.01 for linear and none for telea, as in the same sources",
    )


@register
class Road:
    """The target's probability, and whether the target is predicted, on images with some pixels removed.

    The most relevant pixels are removed first (MoRF), or the least relevant ones (LeRF). In both orders, a
    level is the share that is removed; in the paper's code and in pytorch-grad-cam, the level of LeRF is the
    share that is kept. At least one pixel is removed, and at least one is left. Exact ranks decide which
    pixels are removed, and pixels with equal values are in the random order of the image's seed, so flat maps
    remove pixels at random.

    Values are means over the levels. ``road_morf`` and ``road_lerf`` are the target's probability;
    ``road_morf_accuracy`` and ``road_lerf_accuracy`` say whether the target is predicted, 0 or 1. The means
    of the latter over images are the paper's curves, but for the explained class instead of the label; they
    are the same if labels are explained. ``road_combined`` is (road_lerf - road_morf) / 2, as in
    pytorch-grad-cam.

    A hole that is filled in from its surroundings does not show the object's shape. On the demo's digits, a
    map of the true pixels beats every control by far, which it does not in deletion.

    CHOICE: the noise is drawn once per image, for all its pixels, and used at all levels and in both orders,
    which then differ only in the pixels removed. As in the paper's code, filled-in pixels with noise are not
    clamped to [0, 1].
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

    @staticmethod
    def axes(column: str, parameters: RoadParameters) -> Axes:
        first = "most" if "morf" in column else "least"
        accuracy = column.endswith("accuracy")
        return Axes(
            f"share of pixels removed, {first} salient first",
            "share with class predicted" if accuracy else "probability of the class",
            tuple(level / 100 for level in parameters.levels),
        )

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a curve has one point per level, and ``road_combined`` has none."""
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
        """Score the inputs at each level: (B, 2 levels, 2), for MoRF and then for LeRF.

        The last axis is the target's probability, and 1 where the target is predicted, else 0.
        """
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
