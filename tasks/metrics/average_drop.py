"""Average drop and its relatives: how the target's probability changes if the map masks the input.

Average drop and increase in confidence: Chattopadhay et al., "Grad-CAM++", WACV 2018; the levels are those of
Ntrougkas, Gkalelis and Mezaris, "TAME", ISM 2022. Average gain: Zhang et al., "Opti-CAM", CVIU 2024. Average
drop in deletion: Jung and Oh, "Towards Better Explanations of Class Activation Mapping", ICCV 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from explainers.models.modality import MODALITIES
from tasks.metrics.base import Column, MetricBatch, Need, Scores
from tasks.metrics.composites import target_probabilities
from tasks.metrics.levels import DISTINCT, LISTED
from tasks.metrics.preparation import unreadable
from tasks.metrics.ranking import ranks, sites_of
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class AverageDropParameters(Parameters):
    """Parameters of average drop."""

    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], LISTED, DISTINCT] = Field(
        default=(100, 50, 15),
        description="percentages of sites, the most salient ones, that keep their value in the mask; each "
        "gives its own columns",
    )


class _Masked:
    """The common part: the target's probability with the map as a mask, cut to the most salient sites."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = AverageDropParameters
    inverse: ClassVar[bool]  # whether the mask hides the salient sites, instead of the others

    def __init__(self, classifier: BlackBox, parameters: AverageDropParameters) -> None:
        self.classifier = classifier
        self.levels = [level for level in parameters.levels if classifier.graded or level < 100]
        if not self.levels:
            raise ValueError("levels: at 100 % every token is kept; choose levels below 100")

    @property
    def _filled_with(self) -> str:
        mask = "1 - map" if self.inverse else "the map"
        return MODALITIES[self.classifier.modality].masked.format(mask=mask)

    def _named(self, columns: list[Column], numbers: list[Tensor], maps: Tensor) -> Scores:
        """Put the (B, levels) numbers under the columns' names; NaN for maps of NaN."""
        scores = torch.cat(numbers, 1).masked_fill(unreadable(maps)[:, None], torch.nan)
        return Scores({column.name: score for column, score in zip(columns, scores.T, strict=True)})

    def _probabilities(self, batch: MetricBatch, maps: Tensor) -> Tensor:
        """Return the target's (B, levels) probability on the inputs masked at each level.

        It is NaN for a text of which the level keeps every token, since then nothing is measured.
        """
        order = ranks(maps, batch.seeds)
        sites = sites_of(maps)
        shares = torch.tensor(self.levels, device=maps.device) / 100
        counts = (shares * sites[:, None]).round().clamp(min=1)
        hidden = (
            None if self.classifier.graded else self.classifier.fill(batch.inputs, self.classifier.fills[0])
        )

        def compose(image: Tensor, level: Tensor) -> Tensor:
            salient = (order[image] < counts[image, level, None]).view(-1, 1, *maps.shape[1:])
            if hidden is not None:
                return torch.where(salient ^ self.inverse, batch.inputs[image], hidden[image])
            mask = maps[image, None] * salient
            return batch.inputs[image] * (1 - mask if self.inverse else mask)

        after = target_probabilities(self.classifier, batch, len(self.levels), compose)
        whole = counts == sites[:, None]
        if hidden is not None:
            return after.masked_fill(whole, torch.nan)
        # Such a mask leaves the input as it was. Without this line, rounding differences between two forward
        # passes would decide whether the confidence "increased".
        unchanged = (maps == float(not self.inverse)).flatten(1).all(1)[:, None] & (whole | self.inverse)
        return torch.where(unchanged, batch.confidence[:, None], after)


@register
class AverageDrop(_Masked):
    """Per image: max(0, c - o) / c, whether o > c, and max(0, o - c) / (1 - c).

    c is the target's probability on the input, and o is the probability on the input times the map. The means
    over all images are average drop, increase in confidence and average gain.

    A text cannot be multiplied. For a text, the most salient tokens stay, at least one, and mask tokens
    replace the others; if there is no mask token, the others are removed. Nothing is measured if all tokens
    stay: level 100 is left out for texts, and a text of a single token has no value.
    """

    name: ClassVar[str] = "average_drop"
    title: ClassVar[str] = (
        "Average drop, increase in confidence (Chattopadhay et al. 2018) and gain at TAME's levels"
    )
    inverse: ClassVar[bool] = False

    def columns(self) -> list[Column]:
        ways = {"average_drop": "lower", "increase_in_confidence": "higher", "average_gain": "higher"}
        return [
            Column(f"{name}_{level}", 0.0, 1.0, better, self._filled_with)
            for name, better in ways.items()
            for level in self.levels
        ]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a drop from probability 0 and a gain from probability 1 are NaN."""
        before = batch.confidence[:, None]
        after = self._probabilities(batch, maps)
        drops = (before - after).clamp(min=0) / before
        increases = (after > before).to(drops.dtype).masked_fill(after.isnan(), torch.nan)
        gains = (after - before).clamp(min=0) / (1 - before)
        return self._named(self.columns(), [drops, increases, gains], maps)


@register
class AverageDropInDeletion(_Masked):
    """Per image: max(0, c - d) / c; high values are good.

    c is the target's probability on the input, and d is the probability on the input times (1 - map). The
    mean over all images is average drop in deletion. CHOICE: as in average drop, a rise counts as a drop of
    0; otherwise one image with an improbable class would outweigh all others. The paper uses level 100 only.
    At lower levels only the most salient sites are darkened, each in proportion to its saliency. A map of
    zeros removes nothing, and has the value 0. At level 100, a map of ones leaves a black image.

    For a text, the most salient tokens are hidden, at least one, whatever their saliency. Mask tokens replace
    them; if there is no mask token, they are removed. Nothing is measured if all tokens are hidden: level 100
    is left out for texts, and a text of a single token has no value.

    A map that darkens everything wins: on the demo's digits, noise and a centred Gaussian beat a map of the
    digit's true pixels, whose black shape still shows the digit. Read this metric beside the controls.
    """

    name: ClassVar[str] = "average_drop_in_deletion"
    title: ClassVar[str] = "Average drop under the inverted map (Jung and Oh 2021), at TAME's levels"
    inverse: ClassVar[bool] = True

    def columns(self) -> list[Column]:
        return [
            Column(f"{self.name}_{level}", 0.0, 1.0, "higher", self._filled_with) for level in self.levels
        ]

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a drop from probability 0 is NaN."""
        before = batch.confidence[:, None]
        drops = (before - self._probabilities(batch, maps)).clamp(min=0) / before
        return self._named(self.columns(), [drops], maps)
