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
    """The harmonic mean of coherency, 1 - complexity and 1 - average drop, per image; 0 if one of them is 0.

    - Coherency is the similarity of two maps for the same class: that of the input, and that of the input
      times its map. It is (1 + r) / 2, where r is Pearson's correlation over the pixels.
    - Complexity is the mean of the map, which is its L1 norm divided by the number of pixels.
    - Average drop is that of level 100: max(0, c - o) / c, where c is the target's probability on the input
      and o is the probability on the input times the map.

    CHOICE: if one of the two maps is constant, r is undefined. It then counts as 1 if the maps are equal and
    as 0 if they are not. So a map of ones is coherent, and has an ADCC of 0 because of its complexity. A map
    of zeros has the lowest complexity, and its ADCC depends on the target's probability on black.

    Explainers that do not look at the pixels, such as the random control, are perfectly coherent.

    CHOICE: the number of a dataset is the mean of the images' harmonic means, as in the authors' code, and
    not the harmonic mean of three means. The authors explain the predicted class; this metric explains the
    run's target.
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
        """Score maps; coherency and ADCC are NaN where the explainer fails on the masked input.

        Explainers with ``PREDICTION`` among their needs fail if masking changes the prediction. ADCC is also
        NaN where the average drop is: if the target's probability on the input is 0.
        """
        drop = self.drop.score(batch, maps).values["average_drop_100"]
        coherency = (1 + self._correlation(batch, maps)) / 2
        complexity = maps.mean((1, 2)).clamp(max=1)
        parts = torch.stack([coherency, 1 - complexity, 1 - drop], 1)
        adcc = 3 / (1 / parts).sum(1)
        return Scores({"coherency": coherency, "adcc_complexity": complexity, "adcc": adcc})

    def _correlation(self, batch: MetricBatch, maps: Tensor) -> Tensor:
        """Correlate each map with the map of the input times the map: (B,), NaN where one of them is NaN."""
        found = torch.full_like(batch.confidence, torch.nan)
        rows = (~unreadable(maps)).nonzero()[:, 0]
        if len(rows):
            masked = batch.inputs[rows] * maps[rows, None]
            found[rows] = pearson(maps[rows], batch.explainer(masked, rows))
        return found


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """Compute Pearson's correlation of maps with others over their pixels.

    Parameters
    ----------
    maps, others
        (B, H, W) prepared.

    Returns
    -------
    (B,) float32
        In [-1, 1]. If one of the two maps is constant, 1 if they are equal and 0 if they are not. NaN where
        either map is NaN.
    """
    a, b = (each.flatten(1).double() for each in (maps, others))
    a, b = (each - each.mean(1, keepdim=True) for each in (a, b))
    correlation = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
    equal = (maps == others).flatten(1).all(1).double()
    correlation = torch.where(flat(maps) | flat(others), equal, correlation)
    return correlation.masked_fill(unreadable(maps) | unreadable(others), torch.nan).float()
