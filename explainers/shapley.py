"""Shapley values of cells, estimated from random permutations."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Batch, Description, Detail, Explanation, Need, Parameters, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.randomness import uniform
from explainers.probes.games import CellParameters, Cells, Game
from explainers.registry import register


class ShapleyParameters(CellParameters):
    """Parameters of sampled Shapley values. ``preset = "fast"`` has 10 permutations of 7x7 cells."""

    FAST: ClassVar = {"grid": 7, "samples": 10}

    samples: int = Field(
        200, ge=1, le=100_000, description="number of permutations; each gives one sample per cell"
    )


@register
class Shapley:
    """Sampled Shapley values (Castro, Gomez and Tejada, 2009), the baseline of MoXI (CVPR 2024).

    Cells are added in the order of a random permutation. What a cell adds to the reward of the cells before
    it is a sample of its value. The map is the mean over permutations, so its values sum to the reward of the
    whole input minus the reward of no cell. For n cells, it takes ``samples`` times (n - 1) forward passes,
    and two more. Permutations depend on the image's seed. Absent cells are treated as in MoXI.

    Details: ``forward_passes``; ``tokens``, the number of tokens that the encoder processed in them, 0 if the
    network has none.
    """

    name: ClassVar[str] = "shapley"
    title: ClassVar[str] = "Shapley values of cells, sampled from permutations (Castro et al., 2009)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[Parameters]] = ShapleyParameters

    def __init__(self, classifier: Classifier, parameters: ShapleyParameters) -> None:
        self.cells, self.samples = Cells(classifier, parameters), parameters.samples

    def describe(self) -> Description:
        return Description(
            self.cells.grid, {"forward_passes": Detail((), "int32"), "tokens": Detail((), "int64")}
        )

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        game = self.cells.game(batch)
        n, samples = self.cells.count, self.samples
        ties = uniform(batch.seeds, samples * n).view(len(batch), samples, n)
        maps = sampled(game, ties.argsort(dim=2, stable=True)).unflatten(1, self.cells.grid).float()
        details = {"forward_passes": game.passes.int(), "tokens": game.tokens}
        return Explanation(maps, statuses_of(maps), details)


def sampled(game: Game, permutations: Tensor) -> Tensor:
    """Return the (B, n) mean gain of every cell over the permutations (B, S, n) of the cells.

    All permutations of all images advance together by one cell, so that forward batches are full.
    """
    B, S, n = permutations.shape
    rank = permutations.argsort(2)
    every = torch.arange(B, device=rank.device)
    ends = torch.tensor([False, True], device=rank.device).repeat(B)[:, None].expand(-1, n)
    none, whole = game.values(every.repeat_interleave(2), ends)[:, 0].view(B, 2).split(1, 1)
    total = none.new_zeros(B, n)
    before = none.expand(B, S)
    for count in range(1, n + 1):
        if count < n:
            present = (rank < count).flatten(0, 1)
            after = game.values(every.repeat_interleave(S), present)[:, 0].view(B, S)
        else:
            after = whole.expand(B, S)
        total = total.scatter_add(1, permutations[..., count - 1], after - before)
        before = after
    return total / S
