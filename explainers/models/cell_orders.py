"""Orders in which a tensor may hold the cells of a grid, beside row by row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BETTER = 1.25  # times the change under the patch; in the true order it is about twice that of any other


def other_order(strength: Tensor, places: tuple[int, int]) -> str | None:
    """Name an order of cells in which changes lie under the patch far more than row by row, if there is one.

    That the strongest cell follows the patch is not enough: it does so where every other row is reversed.

    Parameters
    ----------
    strength
        (places, h, w), how strongly each cell changes for a patch at each place, row by row.
    places
        Number of places of the patch from top to bottom and from left to right.
    """
    h, w = strength.shape[1:]
    shares = strength.flatten(1) / strength.flatten(1).sum(1, keepdim=True).clamp(min=1e-30)
    row = torch.arange(h, device=strength.device) * places[0] // h
    column = torch.arange(w, device=strength.device) * places[1] // w
    place = (row[:, None] * places[1] + column).flatten()  # over each cell

    def under(order: Tensor) -> float:
        return float(shares[place, order.flatten().to(strength.device)].sum())

    own = under(torch.arange(h * w))
    found = {name: under(order) for name, order in _orders(h, w)}
    best = max(found, key=found.__getitem__)
    return best if found[best] > _BETTER * own else None


def _orders(h: int, w: int) -> Iterator[tuple[str, Tensor]]:
    """Names of orders, with the position (h, w) at which each holds the cells."""
    rows, columns = torch.arange(h * w).view(h, w), torch.arange(h * w).view(w, h).T
    yield "column by column", columns
    for name, order in (("rows", rows), ("columns", columns.T)):
        turned = order.clone()
        turned[1::2] = turned[1::2].flip(1)
        yield f"every other one of the {name} is reversed", turned if name == "rows" else turned.T
    for side in range(2, max(h, w)):
        if h % side == 0 and w % side == 0 and side**2 < h * w:
            down, across = h // side, w // side
            windows = torch.arange(h * w).view(down, across, side, side).permute(0, 2, 1, 3)
            yield f"window by window of {side}x{side}", windows.reshape(h, w)
            apart = torch.arange(h * w).view(side, side, down, across).permute(2, 0, 3, 1)
            yield f"those that are {down} rows or {across} columns apart together", apart.reshape(h, w)
