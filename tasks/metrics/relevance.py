"""Localisation against the object's pixels: relevance mass and relevance rank accuracy.

Arras, Osman and Samek, "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network
explanations", Information Fusion 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class _Relevance:
    """The common part: a score of a map against a mask, in [0, 1], and the mask's share of the input.

    Pixels that the mask ignores take no part in either.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.MASKS})
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:
        pass

    def columns(self) -> list[Column]:
        return [Column(self.name, 0.0, 1.0, "higher"), Column(f"{self.name}_area", 0.0, 1.0, None)]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; the reference column reports the mask's share of the input.

        Both columns are NaN for images without a mask, for maps of NaN, and where the first is undefined.
        """
        masks = torch.zeros_like(maps, dtype=torch.bool) if batch.masks is None else batch.masks
        if batch.ignored is None:
            counted, shares = maps, masks.to(maps.dtype).mean((1, 2))
        else:  # pixels that do not count are last in every order, and add nothing to a sum
            counted = maps.masked_fill(batch.ignored, -torch.inf)
            shares = masks.sum((1, 2)) / (~batch.ignored).sum((1, 2))
        accuracy = self.accuracy(batch, counted, masks)
        area = shares.to(maps.dtype)
        undefined = (area == 0) | unreadable(maps) | accuracy.isnan()
        return Scores(
            {
                self.name: accuracy.masked_fill(undefined, torch.nan),
                f"{self.name}_area": area.masked_fill(undefined, torch.nan),
            }
        )

    def accuracy(self, batch: MetricBatch, maps: Tensor, masks: Tensor) -> Tensor:
        """Return the (B,) scores.

        Where a score is undefined, the value is NaN, or any value if the mask is empty or the map is NaN.

        Parameters
        ----------
        maps
            (B, H, W) prepared; -inf where a pixel does not count.
        masks
            (B, H, W) bool, the object's pixels.
        """
        raise NotImplementedError


@register
class RelevanceMassAccuracy(_Relevance):
    """The map's sum over the object's pixels, divided by the map's sum.

    A flat map scores the object's share of the pixels. A map of zeros has no score.
    """

    name: ClassVar[str] = "relevance_mass_accuracy"
    title: ClassVar[str] = "Share of the map on the object's pixels (Arras et al. 2022)"

    def accuracy(self, batch: MetricBatch, maps: Tensor, masks: Tensor) -> Tensor:  # noqa: ARG002
        values = maps.clamp(min=0)  # -inf, where a pixel does not count, adds nothing
        return (values * masks).sum((1, 2)) / values.sum((1, 2))


@register
class RelevanceRankAccuracy(_Relevance):
    """The share of the K most salient pixels that lie on the object, which has K pixels.

    For a map in random order this is, on average, the object's share of the pixels. Ties are in the random
    order of the image's seed, so flat maps, all-zero ones included, are maps in random order.
    """

    name: ClassVar[str] = "relevance_rank_accuracy"
    title: ClassVar[str] = "Share of the K most salient pixels on an object of K pixels (Arras et al. 2022)"

    def accuracy(self, batch: MetricBatch, maps: Tensor, masks: Tensor) -> Tensor:
        objects = masks.flatten(1)
        size = objects.sum(1)
        first = ranks(maps, batch.seeds) < size[:, None]
        return (first & objects).sum(1) / size
