"""Checks of the grid of a layer: whether its cells reach the logits, and whether they follow the input.

They work on tensors, so that the probes at load and the search for a layer share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.models.cell_orders import other_order
from explainers.models.layout import Layout
from explainers.numerics.differences import difference

_REACHED = 1e-5  # of the largest logit: less is rounding
_TRIED = 64  # cells without a gradient that are filled with strong values, at most
_MOST = 0.75  # of the rows and of the columns that a pooling with a stride reads, at least
_STRONG = 10.0  # times the largest activation
_PLACES = 4  # places of the patch along each side, at most
_FOLLOWS = 0.6  # the least correlation, and the least share of places, of a change that follows the patch
_SURELY = 0.85  # the least correlation of a change that follows, but stays nearer the middle than the patch
_SPREAD = 1.4  # times the mean: a strongest change below it is no peak
_FLAT = 1e-4  # cells whose changes differ by a smaller share are one pooled cell
_NUMBERS = 2**20  # of one input's activations that are looked at, at most; else channels are left out
_LEAST = 1e-30  # stands for zero in a divisor
_OUTLIER = 10.0  # standard deviations of a channel; more is cut, because some tokens have huge activations


# Whether cells reach the logits


def reached(gradient: Tensor) -> Tensor:
    """(h, w) bool: whether the gradient (B, D, h, w) of the logits is not zero in a cell, for some input."""
    return (gradient.abs().sum(1) > 0).any(0)


def random_sum(logits: Tensor) -> Tensor:
    """The sum of logits with seeded random weights, whose gradient stands for all of theirs."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    return (logits * weights).sum()


def reach(
    with_gradient: Tensor, layout: Layout, activations: Tensor, head: Callable[[Tensor], Tensor]
) -> tuple[bool, str]:
    """Judge whether every cell reaches the logits.

    Where the gradient is zero for all inputs, as behind a ReLU or a maximum it may be, the cell is filled
    with strong values.

    Parameters
    ----------
    with_gradient
        (h, w) bool, the cells with a gradient.
    layout
        How activations are read.
    activations
        (1, \\*shape), those in which cells are filled.
    head
        From activations to logits (B, K).

    Returns
    -------
    bool, str
        Whether all cells do, but for the last ones that a stride leaves out, and what was seen.
    """
    height, width = with_gradient.shape
    silent = (~with_gradient).nonzero()
    tried = silent[:: -(-len(silent) // _TRIED) or 1].tolist()
    deaf = [cell for cell in tried if not _respond(head(_strongly_filled(layout, activations, *cell)))]
    if not deaf:
        return True, f"all of {height}x{width} cells reach the logits"
    rows, columns = (int(with_gradient.any(axis).sum()) for axis in (1, 0))
    if bool(with_gradient[:rows, :columns].all()) and min(rows / height, columns / width) >= _MOST:
        return True, (
            f"{rows}x{columns} of {height}x{width} cells reach the logits, a stride leaves out the last ones"
        )
    return False, (
        f"{len(deaf)} of {len(tried)} cells that were tried on the {height}x{width} grid cannot reach the "
        f"logits, such as row {deaf[0][0]}, column {deaf[0][1]}"
    )


def _respond(logits: Tensor) -> bool:
    """Whether logits (B, K) are others than in the first row."""
    return not difference(logits[1:], logits[:1]) <= _REACHED  # infinite logits have changed as well


def _strongly_filled(layout: Layout, activations: Tensor, row: int, column: int) -> Tensor:
    """(7, \\*shape): (1, \\*shape) activations, and the same with strong values of six kinds in a cell."""
    strong = _STRONG * (float(activations.abs().max()) or 1.0)
    signs = torch.randn(2, layout.channels, generator=torch.Generator().manual_seed(1)).sign()
    fills = torch.cat([torch.zeros(1, layout.channels), signs, -signs, torch.ones_like(signs[:1])]) * strong
    filled = activations.repeat(1 + len(fills), *[1] * (activations.ndim - 1))
    layout.spatial(filled)[1:, :, row, column] = fills.to(filled)  # the first one stays as it was
    return filled


# Whether cells follow the input


def places_on(grid: tuple[int, int]) -> tuple[int, int]:
    """Number of places of the patch from top to bottom and from left to right, for a grid (h, w)."""
    return min(grid[0], _PLACES), min(grid[1], _PLACES)


def changes(
    maps: Callable[[Tensor], Sequence[Tensor]],
    input_shape: Sequence[int],
    places: tuple[int, int],
    device: torch.device,
) -> list[Tensor]:
    """By how much the channel maps of an input change for a bright patch at each place.

    Parameters
    ----------
    maps
        From an input (1, C, H, W), in [0, 1], to the channel maps (D, h, w) of each layer that is looked at.
    input_shape
        (C, H, W).
    places
        Number of places from top to bottom and from left to right.
    device
        Where the inputs are made.

    Returns
    -------
    list
        (places, D, h, w) for each layer; of very large maps only some channels.
    """
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, channels, 4, 4, generator=generator) / 2
    noise = torch.rand(1, channels, height, width, generator=generator) / 10
    inputs = (F.interpolate(coarse, (height, width), mode="bilinear") + noise).to(device)

    def looked_at(shown: Tensor) -> list[Tensor]:
        return [each[:: -(-each.numel() // _NUMBERS)] for each in maps(shown)]

    before = looked_at(inputs)
    found: list[list[Tensor]] = [[] for _ in before]
    for row in range(places[0]):
        for column in range(places[1]):
            patched = inputs.clone()
            down = slice(row * height // places[0], (row + 1) * height // places[0])
            across = slice(column * width // places[1], (column + 1) * width // places[1])
            patched[:, :, down, across] = 1
            for kept, now, then in zip(found, looked_at(patched), before, strict=True):
                kept.append((now - then).abs())
    return [torch.stack(each) for each in found]


def follows(changed: Tensor, places: tuple[int, int], has_axes: bool) -> tuple[bool, str]:
    """Judge whether the strongest change on a grid follows a bright patch over the input.

    On a small grid every cell of a sound network may see the whole input, so that there is no peak. This is
    accepted where the tensor has axes of its own for rows and columns, unless all cells change alike.

    Parameters
    ----------
    changed
        (places, D, h, w), from :func:`changes`.
    places
        Number of places from top to bottom and from left to right.
    has_axes
        Whether rows and columns are axes of the tensor.

    Returns
    -------
    bool, str
        Whether it does, and what was seen.
    """
    scale = changed.square().mean((0, 2, 3), keepdim=True).sqrt()
    shares = (changed / scale.clamp(min=_LEAST)).clamp(max=_OUTLIER)
    strength = shares.square().mean(1).sqrt()  # (places, h, w)
    # A token that changes wherever the patch is, as registers do, hides the one that changes with it. So both
    # the change itself and its share of the cell's mean change are looked at.
    ratio = strength / strength.mean(0).clamp(min=_LEAST)
    other = other_order(ratio, places)
    if other is not None:
        return False, f"as if cells were stored in another order: {other}"
    correlation, near = max((_followed(each, places) for each in (strength, ratio)), key=min)
    told = f"correlation {correlation:.2f}, near the patch at {near:.0%} of {places[0] * places[1]} places"
    if min(correlation, near) >= _FOLLOWS or correlation >= _SURELY:
        return True, told
    peak = float((ratio.amax((1, 2)) / ratio.mean((1, 2)).clamp(min=_LEAST)).median())
    if has_axes and 1 + _FLAT < peak < _SPREAD:
        return True, (
            f"no peak (the strongest change is {peak:.2f} of the mean), since every cell sees the whole input"
        )
    return False, told


def _followed(strength: Tensor, places: tuple[int, int]) -> tuple[float, float]:
    """How the strongest cell follows the patch.

    Parameters
    ----------
    strength
        (places, h, w), how strongly each cell changes for a patch at each place, row by row.
    places
        Number of places from top to bottom and from left to right.

    Returns
    -------
    correlation
        Of the cell's row with the patch's, or of their columns: the lower one; 1 for a side of one cell.
    near
        Share of places at which the cell lies under the patch, or at most one cell beside it.
    """
    grid = strength.shape[1:]
    strongest = strength.flatten(1).argmax(1).cpu()
    found = torch.stack([strongest // grid[1], strongest % grid[1]]).double()
    number = torch.arange(places[0] * places[1])
    middle = torch.stack([number // places[1], number % places[1]]).double() + 0.5
    near, correlation = torch.ones(len(number), dtype=torch.bool), 1.0
    for side in (0, 1):
        size = grid[side] / places[side]  # of the patch, in cells
        wanted = middle[side] * size - 0.5
        near &= (found[side] - wanted).abs() <= size / 2 + 1
        if grid[side] > 1:
            its = torch.corrcoef(torch.stack([found[side], wanted]))[0, 1].nan_to_num(0.0)
            correlation = min(correlation, float(its))
    return correlation, float(near.double().mean())
