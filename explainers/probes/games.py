"""Games whose players are cells of the input: the output of the classifier when only some are present.

A transformer drops the tokens of absent cells; any other network sees a fill in their place. Both games take
sets from many images at once and evaluate them in full forward batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from explainers.base import Batch, PresetParameters
from explainers.models.classifier import Classifier
from explainers.models.modality import ImageFill
from explainers.numerics.batching import in_chunks
from explainers.numerics.masking import rows_of
from explainers.probes.masked_forward import (
    MaskedForward,
    Score,
    target_log_odds,
    target_probability,
    with_prediction,
)
from explainers.probes.narrowing import class_token_alone

CELLS = 14  # per side of the grid

REWARDS: dict[str, Score] = {"log_odds": target_log_odds, "confidence": target_probability}


class CellParameters(PresetParameters):
    """The cells that are players, what an absent cell shows, and the value of a set of cells."""

    grid: int | None = Field(
        None,
        ge=1,
        le=128,
        description="cells per side; by default a transformer's own patches, else 14, or the number of "
        "pixels where there are fewer",
    )
    fill: ImageFill | None = Field(
        None,
        description="what absent cells show; by default a transformer drops their tokens, and any other "
        "network sees the mean",
    )
    reward: Literal["log_odds", "confidence"] = Field(
        "log_odds",
        description="value of a set of cells, from the target's probability p: log(p / (1 - p)), or p",
    )


class Game(Protocol):
    """The value of every set of cells, for the images of one batch."""

    @property
    def passes(self) -> Tensor:
        """(B,) whole numbers: the forward passes so far, per image."""
        ...

    @property
    def tokens(self) -> Tensor:
        """(B,) whole numbers: the tokens that the encoder saw in them; 0 for networks without tokens."""
        ...

    def values(self, images: Tensor, present: Tensor) -> Tensor:
        """Evaluate M sets of cells.

        Parameters
        ----------
        images
            (M,) int64: the image of each set, as an index into the batch.
        present
            (M, n) bool: the cells in each set.

        Returns
        -------
        Tensor
            (M, 2): the reward of the target, and 1 where the target is predicted, else 0.
        """
        ...


class Cells:
    """The cells of a classifier's inputs, and the game that they play.

    Attributes
    ----------
    grid
        (h, w): rows and columns of cells.
    count
        n = h * w.
    encode
        From tokens and present patches to logits, where the tokens of absent cells are left out; None where
        these show a fill.

    Raises
    ------
    ValueError
        In one line, if the cells do not consist of whole patches, or are smaller than a pixel.
    """

    def __init__(self, classifier: Classifier, parameters: CellParameters) -> None:
        self.classifier, self.parameters = classifier, parameters
        # The empty set of cells needs logits as well, which a head that reads patches alone does not have.
        drops = parameters.fill is None and classifier.supports_patches and not classifier.needs_patches
        if parameters.grid is not None:
            self.grid = parameters.grid, parameters.grid
        else:
            rows, columns = (min(CELLS, pixels) for pixels in classifier.input_size)
            self.grid = classifier.patch_grid if drops else (rows, columns)
        self.count = self.grid[0] * self.grid[1]
        self._check(drops)
        self.encode = class_token_alone(classifier) if drops else None

    def game(self, batch: Batch) -> Game:
        """The game for the images and targets of a batch."""
        score = with_prediction(REWARDS[self.parameters.reward])
        if self.encode is not None:
            return DroppedTokens(self.classifier, batch, self.grid, score, self.encode)
        return FilledCells(self.classifier, batch, self.grid, self.parameters.fill or "mean", score)

    def _check(self, drops: bool) -> None:
        (h, w), (H, W) = self.grid, self.classifier.input_size
        if h > H or w > W:
            raise ValueError(f"grid: {h}x{w} cells do not fit into {H}x{W} pixels; choose fewer")
        if not drops:
            return
        rows, columns = self.classifier.patch_grid
        if rows % h or columns % w:
            raise ValueError(
                f"grid: {h}x{w} cells do not consist of whole patches, of which there are {rows}x{columns}; "
                "choose a divisor, or a fill instead of dropping tokens"
            )


class FilledCells:
    """A game in which absent cells show a fill."""

    def __init__(
        self, classifier: Classifier, batch: Batch, grid: tuple[int, int], fill: ImageFill, score: Score
    ) -> None:
        self.inputs, self.grid, self.size = batch.inputs, grid, classifier.input_size
        self.fill = classifier.fill(batch.inputs, fill)
        self.masked = MaskedForward(classifier, batch.targets, batch.forwards, score)
        self.tokens = torch.zeros_like(batch.targets)

    @property
    def passes(self) -> Tensor:
        return self.masked.passes

    def values(self, images: Tensor, present: Tensor) -> Tensor:
        def compose(rows: Tensor) -> Tensor:
            cells = present[rows].to(self.inputs.dtype).unflatten(1, (1, *self.grid))
            shown = F.interpolate(cells, self.size)  # nearest: hard edges
            behind = rows_of(self.fill, images[rows])
            return torch.lerp(behind.expand(len(rows), -1, *self.size), self.inputs[images[rows]], shown)

        return self.masked.scores(images, compose)


class DroppedTokens:
    """A game in which the tokens of absent cells are left out, after all patches are embedded once."""

    def __init__(
        self,
        classifier: Classifier,
        batch: Batch,
        grid: tuple[int, int],
        score: Score,
        encode: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.classifier, self.targets, self.score, self.encode = classifier, batch.targets, score, encode
        self.embedded = in_chunks(
            lambda rows: classifier.embed(batch.inputs[rows]), len(batch), batch.forwards
        )
        self.budget = batch.forwards * self.embedded.shape[1]  # tokens per step: those of whole images
        self.grid = grid
        self.passes, self.tokens = torch.zeros_like(batch.targets), torch.zeros_like(batch.targets)

    def values(self, images: Tensor, present: Tensor) -> Tensor:
        counts = present.sum(1)
        found = present.new_empty(len(images), 2, dtype=self.embedded.dtype)
        for size in counts.unique().tolist():
            rows = (counts == size).nonzero()[:, 0]
            found = found.index_copy(0, rows, self._of_size(images[rows], present[rows]))
        return found

    def _of_size(self, images: Tensor, present: Tensor) -> Tensor:
        """Values of sets of one size, in steps of as many tokens as ``forwards`` whole images have."""
        tokens = self.classifier.patches
        length = tokens.length(int(present[:1].sum()) * tokens.layout.units.count // present.shape[1])

        def evaluate(rows: slice) -> Tensor:
            keep = F.interpolate(
                present[rows].float().unflatten(1, (1, *self.grid)), self.classifier.patch_grid
            )
            logits = self.encode(self.embedded[images[rows]], keep.flatten(1).bool())
            return self.score(self.classifier, logits, self.targets[images[rows]])

        passes = images.bincount(minlength=len(self.targets))
        self.passes += passes
        self.tokens += passes * length
        return in_chunks(evaluate, len(images), max(1, self.budget // length))
