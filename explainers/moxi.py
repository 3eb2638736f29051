"""MoXI: the cells that together make the prediction, found one by one with their interactions.

Sumiyasu, Kawamoto and Kera, "Identifying Important Group of Pixels using Interactions", CVPR 2024,
arXiv 2401.03785. The class-discriminative mode is in an appendix that we have not seen, and left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Batch, Description, Detail, Explanation, Need, Parameters, statuses_of
from explainers.models.classifier import Classifier
from explainers.probes.games import CellParameters, Cells, Game
from explainers.registry import register

Mode = Literal["insertion", "deletion"]


class MoxiParameters(CellParameters):
    """Parameters of MoXI; the fast preset has 7x7 cells."""

    FAST: ClassVar = {"grid": 7}

    mode: Literal["insertion", "deletion", "both"] = Field(
        "insertion", description="the map is that of the insertion where both are wanted"
    )
    full_order: bool = Field(False, description="go on after the prediction flips, to order all cells")
    interactions: bool = Field(True, description="false: MoXI(-), cells ordered once by their Shapley values")


@dataclass(frozen=True)
class Order:
    """In which cells were chosen, for B images of n cells; -1 and NaN where it stopped before.

    ``order`` (B, n) int64; ``reward`` (B, n), after each step; ``steps`` (B,) int64, until the prediction
    flipped, 0 if it did not.
    """

    order: Tensor
    reward: Tensor
    steps: Tensor

    def saliency(self) -> Tensor:
        """(B, n) float32: the cell at rank j has m - j, those behind rank m have 0; NaN if a reward is."""
        n = self.order.shape[1]
        m = torch.where(self.steps > 0, self.steps, n)
        height = (m[:, None] - torch.arange(n, device=m.device)).clamp(min=0).float()
        chosen = self.order >= 0
        broken = (chosen & ~self.reward.isfinite()).any(1)
        found = torch.zeros_like(height).scatter_add(1, self.order.clamp(min=0), height * chosen)
        return found.masked_fill(broken[:, None], torch.nan)


@register
class Moxi:
    """MoXI (CVPR 2024, arXiv 2401.03785, algorithms 1 and 2): cells by what they add to those already chosen.

    Insertion starts with no cell and adds the one that leaves the highest reward, deletion starts with all
    and removes the one that leaves the lowest; the first cell in row-major order wins a tie. With m steps
    until the target is predicted (insertion) or no longer is (deletion), the cell at rank j = 0, 1, ... has
    the saliency m - j, and cells not needed have 0; if the prediction never flips, m is the number of cells.
    A step tries all remaining cells: n (n + 1) / 2 forward passes for a full order.

    Absent cells of a vision transformer are dropped tokens, embedded once an image; the last block computes
    the class token alone. Where the head reads nothing but patches, and for other networks, absent cells
    show a fill.

    Details, for each mode: ``<mode>_order`` (n,), cells in row-major numbering, and ``<mode>_reward`` (n,),
    -1 and NaN after an early stop; ``<mode>_steps``, m, 0 if the prediction never flips. ``forward_passes``;
    ``tokens``, how many the encoder saw in them (0 without).
    """

    name: ClassVar[str] = "moxi"
    title: ClassVar[str] = "MoXI: the cells that make the prediction, one by one (CVPR 2024)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[Parameters]] = MoxiParameters

    def __init__(self, classifier: Classifier, parameters: MoxiParameters) -> None:
        self.cells, self.parameters = Cells(classifier, parameters), parameters
        self.modes: list[Mode] = ["insertion", "deletion"] if parameters.mode == "both" else [parameters.mode]

    def describe(self) -> Description:
        n = self.cells.count
        details = {"forward_passes": Detail((), "int32"), "tokens": Detail((), "int64")}
        for mode in self.modes:
            details[f"{mode}_order"] = Detail((n,), "int16")
            details[f"{mode}_reward"] = Detail((n,), "float32")
            details[f"{mode}_steps"] = Detail((), "int16")
        return Description(self.cells.grid, details)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        game = self.cells.game(batch)
        search = greedy if self.parameters.interactions else sorted_once
        found = {
            mode: search(game, len(batch), self.cells.count, mode == "insertion", self.parameters.full_order)
            for mode in self.modes
        }
        maps = found[self.modes[0]].saliency().unflatten(1, self.cells.grid)
        details = {"forward_passes": game.passes.int(), "tokens": game.tokens}
        for mode, result in found.items():
            details[f"{mode}_order"] = result.order.short()
            details[f"{mode}_reward"] = result.reward
            details[f"{mode}_steps"] = result.steps.short()
        return Explanation(maps, statuses_of(maps), details)


def greedy(game: Game, images: int, n: int, inserting: bool, full: bool) -> Order:
    """Algorithms 1 and 2: at every step the cell whose coming or going changes the reward most.

    All images take a step together, so that forward batches are full even where few cells are left.
    """
    B, device = images, game.passes.device
    chosen = torch.zeros(B, n, dtype=torch.bool, device=device)
    order, steps = torch.full((B, n), -1, device=device), torch.zeros(B, dtype=torch.int64, device=device)
    rewards = torch.full((B, n), torch.nan, device=device)
    active = torch.arange(B, device=device)
    for rank in range(n):
        row, cell = (~chosen[active]).nonzero().T
        tried = chosen[active[row]].scatter(1, cell[:, None], True)
        values = game.values(active[row], tried if inserting else ~tried)
        reward, predicted = values.unflatten(0, (len(active), -1)).unbind(2)
        best = reward.argmax(1, keepdim=True) if inserting else reward.argmin(1, keepdim=True)
        cells = cell.view_as(reward).gather(1, best)[:, 0]
        chosen[active, cells] = True
        order[active, rank] = cells
        rewards[active, rank] = reward.gather(1, best)[:, 0].float()
        flipped = (predicted.gather(1, best)[:, 0] == float(inserting)) & (steps[active] == 0)
        steps[active[flipped]] = rank + 1
        going = rewards[active, rank].isfinite() & ((steps[active] == 0) | full)
        active = active[going]
        if not len(active):
            break
    return Order(order, rewards, steps)


def sorted_once(game: Game, images: int, n: int, inserting: bool, full: bool) -> Order:
    """MoXI(-): cells in the order of their own effect; n forward passes, and those along it.

    Until the prediction flips, twice as many cells as before are added at a time, to fill forward batches.
    """
    B, device = images, game.passes.device
    image = torch.arange(B, device=device).repeat_interleave(n)
    alone = torch.eye(n, dtype=torch.bool, device=device).repeat(B, 1)
    effect = game.values(image, alone if inserting else ~alone)[:, 0].view(B, n)
    order = effect.argsort(dim=1, descending=inserting, stable=True)
    rank = order.argsort(1)
    rewards = torch.full((B, n), torch.nan, device=device)
    steps = torch.zeros(B, dtype=torch.int64, device=device)
    active, start = torch.arange(B, device=device), 0
    while start < n and len(active):
        counts = torch.arange(start + 1, min(max(1, 2 * start), n) + 1, device=device)
        present = (rank[active, None] < counts[:, None]).flatten(0, 1)
        values = game.values(active.repeat_interleave(len(counts)), present if inserting else ~present)
        reward, predicted = values.unflatten(0, (len(active), -1)).unbind(2)
        rewards[active, start : start + len(counts)] = reward.float()
        flipped = predicted == float(inserting)
        first = torch.where(flipped.any(1), counts[flipped.int().argmax(1)], 0)
        steps[active] = torch.where(steps[active] > 0, steps[active], first)
        active = active[(steps[active] == 0) | full]
        start += len(counts)
    behind = torch.arange(n, device=device) >= torch.where((steps > 0) & (not full), steps, n)[:, None]
    return Order(order.masked_fill(behind, -1), rewards.masked_fill(behind, torch.nan), steps)
