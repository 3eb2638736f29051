"""Average drop and increase in confidence: what the class keeps of its probability under the map as a mask.

Chattopadhay et al., "Grad-CAM++", WACV 2018; the levels are those of Ntrougkas, Gkalelis and Mezaris, "TAME",
ISM 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Column, MetricBatch, Scores
from tasks.metrics.composites import target_probabilities
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.classifier import Classifier


class AverageDropParameters(Parameters):
    """``levels``: percentages of pixels, the most salient ones, that keep their value in the mask."""

    levels: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(default=(100, 50, 15), min_length=1)

    @field_validator("levels")
    @classmethod
    def _distinct(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(levels)) < len(levels):
            raise ValueError("levels must differ from each other")
        return levels


@register
class AverageDrop:
    """Per image max(0, c - o) / c and whether o > c, c being the target's probability on the input, o on
    the input times the map; their means over all N images are AD and IC.
    """

    name: ClassVar[str] = "average_drop"
    title: ClassVar[str] = (
        "Average drop and increase in confidence (Chattopadhay et al. 2018) at TAME's levels"
    )
    needs_boxes: ClassVar[bool] = False
    Parameters: ClassVar[type[Parameters]] = AverageDropParameters

    def __init__(self, classifier: Classifier, parameters: AverageDropParameters) -> None:
        self.classifier, self.levels = classifier, parameters.levels

    def columns(self) -> list[Column]:
        fill = "black: pixels times the map, before normalisation"
        drops = [Column(f"average_drop_{level}", 0.0, 1.0, "lower", fill) for level in self.levels]
        gains = [Column(f"increase_in_confidence_{level}", 0.0, 1.0, "higher", fill) for level in self.levels]
        return drops + gains

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, H, W) prepared maps; NaN for maps of NaN, and for a drop from a probability of zero."""
        before = batch.confidence[:, None]
        after = self._probabilities(batch, maps)
        drops = (before - after).clamp(min=0) / before
        gains = (after > before).to(drops.dtype)
        scores = torch.cat([drops, gains], 1).masked_fill(unreadable(maps)[:, None], torch.nan)
        return Scores({column.name: score for column, score in zip(self.columns(), scores.T, strict=True)})

    def _probabilities(self, batch: MetricBatch, maps: Tensor) -> Tensor:
        """(B, levels) probability of the target on the inputs masked at each level."""
        order = ranks(maps, batch.seeds).view_as(maps)
        kept = [round(level * order[0].numel() / 100) for level in self.levels]
        counts = torch.tensor(kept, device=maps.device)

        def compose(image: Tensor, level: Tensor) -> Tensor:
            mask = maps[image] * (order[image] < counts[level, None, None])
            return batch.inputs[image] * mask[:, None]

        after = target_probabilities(self.classifier, batch, len(kept), compose)
        # A mask of ones leaves the input as it was: without this, the rounding of one forward pass against
        # another would decide whether the confidence "increased".
        untouched = (maps == 1).flatten(1).all(1)[:, None] & (counts == order[0].numel())
        return torch.where(untouched, batch.confidence[:, None], after)
