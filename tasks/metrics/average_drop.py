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
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.composites import target_probabilities
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks, sites_of
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.black_box import BlackBox


_FILLS = {
    "image": "black: pixels times the map, before normalisation",
    "text": "tokens that are not kept are hidden: mask tokens, or none where there is no mask token",
    "tensor": "zero: numbers times the map",
}


class AverageDropParameters(Parameters):
    """``levels``: percentages of sites, the most salient ones, that keep their value in the mask."""

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

    A text cannot be multiplied: of a text the most salient tokens stay as they are, at least one, and mask
    tokens stand for the others (or nothing, where there is no such token). Where all tokens stay nothing is
    measured: level 100 is left out, and a text of a single token has no value.
    """

    name: ClassVar[str] = "average_drop"
    title: ClassVar[str] = (
        "Average drop and increase in confidence (Chattopadhay et al. 2018) at TAME's levels"
    )
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = AverageDropParameters

    def __init__(self, classifier: BlackBox, parameters: AverageDropParameters) -> None:
        self.classifier = classifier
        self.levels = [level for level in parameters.levels if classifier.graded or level < 100]
        if not self.levels:
            raise ValueError("levels: at 100 % every token is kept; choose some below")

    def columns(self) -> list[Column]:
        fill = _FILLS[self.classifier.modality]
        drops = [Column(f"average_drop_{level}", 0.0, 1.0, "lower", fill) for level in self.levels]
        gains = [Column(f"increase_in_confidence_{level}", 0.0, 1.0, "higher", fill) for level in self.levels]
        return drops + gains

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) prepared maps; NaN for maps of NaN, and for a drop from probability zero."""
        before = batch.confidence[:, None]
        after = self._probabilities(batch, maps)
        drops = (before - after).clamp(min=0) / before
        gains = (after > before).to(drops.dtype).masked_fill(after.isnan(), torch.nan)
        scores = torch.cat([drops, gains], 1).masked_fill(unreadable(maps)[:, None], torch.nan)
        return Scores({column.name: score for column, score in zip(self.columns(), scores.T, strict=True)})

    def _probabilities(self, batch: MetricBatch, maps: Tensor) -> Tensor:
        """(B, levels) probability of the target on the inputs masked at each level; NaN where none is."""
        order = ranks(maps, batch.seeds)
        sites = sites_of(maps)
        shares = torch.tensor(self.levels, device=maps.device) / 100
        counts = (shares * sites[:, None]).round().clamp(min=1)
        hidden = (
            None if self.classifier.graded else self.classifier.fill(batch.inputs, self.classifier.fills[0])
        )

        def compose(image: Tensor, level: Tensor) -> Tensor:
            kept = (order[image] < counts[image, level, None]).view(-1, 1, *maps.shape[1:])
            if hidden is not None:
                return torch.where(kept, batch.inputs[image], hidden[image])
            return batch.inputs[image] * (maps[image, None] * kept)

        after = target_probabilities(self.classifier, batch, len(self.levels), compose)
        whole = counts == sites[:, None]
        if hidden is not None:
            return after.masked_fill(whole, torch.nan)
        # A mask of ones leaves the input as it was: without this, the rounding of one forward pass against
        # another would decide whether the confidence "increased".
        ones = (maps == 1).flatten(1).all(1)
        return torch.where(ones[:, None] & whole, batch.confidence[:, None], after)
