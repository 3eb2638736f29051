"""Cells of the input as players of a game: what the classifier says when only some are present.

A transformer drops the tokens of absent cells; any other network sees a fill in their place. Both games take
sets from many images at once and stream them in full forward batches.
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

CELLS = 14  # a side

REWARDS: dict[str, Score] = {"log_odds": target_log_odds, "confidence": target_probability}


class CellParameters(PresetParameters):
    """Which cells play, what an absent one shows, and what a set of them is worth."""

    grid: int | None = Field(
        None,
        ge=1,
        description="cells a side; by default a transformer's own patches, else 14, or as many as pixels",
    )
    fill: ImageFill | None = Field(
        None, description="what absent cells show; by default a transformer drops their tokens, else mean"
    )
    reward: Literal["log_odds", "confidence"] = Field(
        "log_odds", description="of the target: log(p / (1 - p)), or p"
    )


class Game(Protocol):
    """Values of sets of cells, for the images of one batch.

    ``passes`` and ``tokens`` (B,) count forward passes, and the tokens the encoder saw in them (0 for
    networks without).
    """

    @property
    def passes(self) -> Tensor: ...

    @property
    def tokens(self) -> Tensor: ...

    def values(self, images: Tensor, present: Tensor) -> Tensor:
        """(M, 2) for (M,) images and the cells in ``present`` (M, n) bool.

        The reward of the target, and 1 where it is the prediction, else 0.
        """
        ...


class Cells:
    """The cells of a classifier's inputs: their (h, w) ``grid``, and what takes the place of absent ones.

    Raises
    ------
    ValueError
        In one line, if cells do not consist of whole patches, or of at least a pixel.
    """

    def __init__(self, classifier: Classifier, parameters: CellParameters) -> None:
        self.classifier, self.parameters = classifier, parameters
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
        """The game of a batch."""
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
                f"grid: {h}x{w} cells do not consist of whole patches of {rows}x{columns}; choose a divisor, "
                "or a fill instead of dropping tokens"
            )


class FilledCells:
    """Absent cells show a fill."""

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
    """The tokens of absent cells are left out, after all patches have been embedded once."""

    def __init__(
        self,
        classifier: Classifier,
        batch: Batch,
        grid: tuple[int, int],
        score: Score,
        encode: Callable[[Tensor], Tensor],
    ) -> None:
        self.classifier, self.targets, self.score, self.encode = classifier, batch.targets, score, encode
        self.embedded = in_chunks(
            lambda rows: classifier.embed(batch.inputs[rows]), len(batch), batch.forwards
        )
        self.budget = batch.forwards * self.embedded.shape[1]
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
        """Values of sets of one size, at once as many as have the tokens of ``forwards`` whole images."""
        cells = present[:1].sum() * (self.embedded.shape[1] - self.classifier.patch_prefix)
        length = self.classifier.patch_prefix + int(cells) // present.shape[1]

        def evaluate(rows: slice) -> Tensor:
            keep = F.interpolate(
                present[rows].float().unflatten(1, (1, *self.grid)), self.classifier.patch_grid
            )
            tokens = self.classifier.kept_tokens(self.embedded[images[rows]], keep.flatten(1).bool())
            return self.score(self.encode(tokens), self.targets[images[rows]])

        passes = images.bincount(minlength=len(self.targets))
        self.passes += passes
        self.tokens += passes * length
        return in_chunks(evaluate, len(images), max(1, self.budget // length))
