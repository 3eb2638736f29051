"""MoXI: the cells that together make the prediction, found one by one, interactions included.

Sumiyasu, Kawamoto and Kera, "Identifying Important Group of Pixels using Interactions", CVPR 2024,
arXiv 2401.03785. The class-discriminative mode is described in an appendix that we have not seen; it is left
out.
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
    """Parameters of MoXI. ``preset = "fast"`` has 7x7 cells."""

    FAST: ClassVar = {"grid": 7}

    mode: Literal["insertion", "deletion", "both"] = Field(
        "insertion",
        description="whether cells are inserted or deleted; both runs both, and the map is that of insertion",
    )
    full_order: bool = Field(False, description="continue after the prediction flips, to order all cells")
    interactions: bool = Field(
        True, description="false: MoXI(-), which orders the cells once, by their Shapley values"
    )


@dataclass(frozen=True)
class Order:
    """The order in which cells were chosen, for B images of n cells.

    Attributes
    ----------
    order
        (B, n) int64, the cell chosen at each step; -1 after the last step.
    reward
        (B, n), the reward after each step; NaN after the last step.
    steps
        (B,) int64, the number of steps until the prediction flipped; 0 if it never flipped.
    """

    order: Tensor
    reward: Tensor
    steps: Tensor

    def saliency(self) -> Tensor:
        """Return (B, n) float32 values of the cells, NaN for images with a reward that is not finite.

        The cell at rank j = 0, 1, ... has the value m - j, and cells from rank m on have 0; m is ``steps``,
        or n if the prediction never flipped.
        """
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

    Insertion starts with no cell and adds the cell that gives the highest reward. Deletion starts with all
    cells and removes the cell whose absence gives the lowest reward. The first cell in row-major order wins a
    tie. Let m be the number of steps until the target is predicted (insertion) or no longer predicted
    (deletion), or the number of cells if the prediction never flips. The cell at rank j = 0, 1, ... has the
    saliency m - j, and cells that are not needed have 0. A step tries all remaining cells, so a full order
    takes n (n + 1) / 2 forward passes.

    In a vision transformer, the tokens of absent cells are left out: dropped, or masked in attention where a
    bias or a rotation belongs to each place. Tokens are embedded once per image, and in well-known networks
    the last block computes the class token alone. If the head reads nothing but patches, and in other
    networks, absent cells show a fill.

    Details, for each mode: ``<mode>_order`` (n,), cells numbered in row-major order, -1 after an early stop;
    ``<mode>_reward`` (n,), NaN after an early stop; ``<mode>_steps``, m, but 0 if the prediction never flips.
    For all modes together: ``forward_passes``; ``tokens``, the number of tokens that the encoder processed in
    them, 0 if the network has none.
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
    """Run algorithms 1 and 2: choose at every step the cell that changes the reward most.

    All images take a step together, so that forward batches are full even when few cells are left.

    Parameters
    ----------
    images
        B, the number of images in the game.
    n
        Number of cells per image.
    inserting
        Whether cells are inserted, and not deleted.
    full
        Whether to continue after the prediction flips.
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
    """Run MoXI(-): order the cells once by their own effects, and follow this order.

    It takes n forward passes for the effects, and one for every step along the order. Each round doubles the
    number of cells that have been tried, to fill forward batches, until the prediction flips. The parameters
    are those of :func:`greedy`.
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
