"""ADCC: average drop, coherency and complexity in one number.

Poppi, Cornia, Baraldi and Cucchiara, "Revisiting the Evaluation of Class Activation Mapping for
Explainability", CVPR Workshops 2021, arXiv 2104.10252.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.average_drop import AverageDrop, AverageDropParameters
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.registry import register
from tasks.metrics.similarity import flat

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


@register
class Adcc:
    """The harmonic mean of coherency, 1 - complexity and 1 - average drop, of each image; 0 if one is 0.

    - Coherency is how alike the map and that of the input times the map are, for the same class: (1 + r) / 2,
      r being Pearson's correlation over the pixels.
    - Complexity is the mean of the map, the L1 norm over the number of pixels.
    - Average drop is that of level 100: max(0, c - o) / c, c being the target's probability on the input and
      o on the input times the map.

    CHOICE: where one of the two maps is constant nothing correlates, and r is 0, or 1 if they are equal. Maps
    of ones are coherent then, and have an ADCC of 0 for their complexity; maps of zeros are the simplest
    there are, and their ADCC says what black leaves of the class.

    Explainers that do not look at the pixels, such as random ones, are perfectly coherent.

    CHOICE: the mean over images is one of harmonic means, as in the authors' code, not the harmonic mean of
    means. Theirs explains the predicted class, where this explains the run's.
    """

    name: ClassVar[str] = "adcc"
    title: ClassVar[str] = "Average drop, coherency and complexity in one number (Poppi et al. 2021)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.EXPLAINER})
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:  # noqa: ARG002
        self.drop = AverageDrop(classifier, AverageDropParameters(levels=(100,)))

    def columns(self) -> list[Column]:
        fill = self.drop.columns()[0].fill
        return [
            Column("coherency", 0.0, 1.0, "higher", fill),
            Column("adcc_complexity", 0.0, 1.0, "lower"),
            Column("adcc", 0.0, 1.0, "higher", fill),
        ]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps; NaN for maps of NaN.

        Coherency and ADCC are NaN as well where the explainer fails on the masked input: explainers of the
        predicted class (``PREDICTION`` among their needs) do if masking changes the prediction. ADCC is NaN
        for a drop from probability 0.
        """
        drop = self.drop.score(batch, maps).values["average_drop_100"]
        coherency = (1 + self._correlation(batch, maps)) / 2
        complexity = maps.mean((1, 2)).clamp(max=1)
        parts = torch.stack([coherency, 1 - complexity, 1 - drop], 1)
        adcc = 3 / (1 / parts).sum(1)
        return Scores({"coherency": coherency, "adcc_complexity": complexity, "adcc": adcc})

    def _correlation(self, batch: MetricBatch, maps: Tensor) -> Tensor:
        """(B,) of each map with that of the input times the map; NaN where there is none."""
        found = torch.full_like(batch.confidence, torch.nan)
        rows = (~unreadable(maps)).nonzero()[:, 0]
        if len(rows):
            masked = batch.inputs[rows] * maps[rows, None]
            found[rows] = pearson(maps[rows], batch.explainer(masked, rows))
        return found


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """(B,) float32 correlation of (B, H, W) maps with others over pixels, in [-1, 1]; NaN if one is NaN.

    Where one of the two is constant, 1 if they are equal and 0 if not.
    """
    a, b = (each.flatten(1).double() for each in (maps, others))
    a, b = (each - each.mean(1, keepdim=True) for each in (a, b))
    correlation = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
    equal = (maps == others).flatten(1).all(1).double()
    correlation = torch.where(flat(maps) | flat(others), equal, correlation)
    return correlation.masked_fill(unreadable(maps) | unreadable(others), torch.nan).float()
