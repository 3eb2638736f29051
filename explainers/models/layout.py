"""The layout of an activation tensor: which axes hold channels, and which hold tokens on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens; more mean that a sequence is misread


@dataclass(frozen=True)
class Units:
    """The units that can be masked at the target layer: ``count`` channels, or ``count`` patch tokens."""

    kind: Literal["channels", "tokens"]
    count: int


@dataclass(frozen=True)
class Layout:
    """How activations of one shape are read.

    In maps (D, h, w) the units are channels. In maps (h, w, D) and in sequences (prefix + h * w, D) they are
    tokens, in row-major order of the grid.

    Attributes
    ----------
    shape
        Shape of the activations, without the batch axis.
    units
        The units that can be masked.
    grid
        (h, w) of the channel maps or of the patch tokens.
    prefix_tokens
        Number of tokens before the patch tokens of a sequence.
    """

    shape: tuple[int, ...]
    units: Units
    grid: tuple[int, int]
    prefix_tokens: int = 0

    @property
    def channels(self) -> int:
        """D: the number of channel maps, or the length of a token."""
        return self.units.count if self.units.kind == "channels" else self.shape[-1]

    def mask(self, activations: Tensor, keep: Tensor) -> Tensor:
        """Set the units outside ``keep`` (B, U) bool to zero in (B, \\*shape); prefix tokens stay."""
        B = len(activations)
        if self.units.kind == "channels":
            keep = keep.view(B, -1, 1, 1)
        elif len(self.shape) == 3:
            keep = keep.view(B, *self.grid, 1)
        else:
            prefix = keep.new_ones(B, self.prefix_tokens)
            keep = torch.cat([prefix, keep], 1).unsqueeze(-1)
        return activations.masked_fill(~keep, 0)

    def mask_channels(self, activations: Tensor, keep: Tensor) -> Tensor:
        """Set the channels outside ``keep`` (B, D) bool to zero in (B, \\*shape); prefix tokens stay."""
        B = len(activations)
        if self.units.kind == "channels":
            return self.mask(activations, keep)
        if len(self.shape) == 3:
            return activations.masked_fill(~keep.view(B, 1, 1, -1), 0)
        position = torch.arange(self.shape[0], device=keep.device)[:, None]
        return activations.masked_fill(~keep[:, None] & (position >= self.prefix_tokens), 0)

    def spatial(self, activations: Tensor) -> Tensor:
        """Activations as channel maps (B, D, h, w); tokens are laid on the grid, without the prefix."""
        if self.units.kind == "channels":
            return activations
        if len(self.shape) == 3:
            return activations.permute(0, 3, 1, 2)
        return activations[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, self.grid)

    def place(self, weights: Tensor, activations: Tensor) -> Tensor:
        """Maps (B, h, w): the channel maps summed with ``weights`` (B, U), or token weights on the grid."""
        if self.units.kind == "channels":
            return torch.einsum("bu,buhw->bhw", weights, activations)
        return weights.unflatten(1, self.grid)


def layout_of(shape: tuple[int, ...], input_size: tuple[int, int], prefix_tokens: int | None) -> Layout:
    """Find the layout of activations from their shape.

    A 4-D tensor can be read as (B, D, h, w) or as (B, h, w, D); the reading is chosen whose grid has the
    proportions of the input. A sequence (B, T, D) holds ``prefix_tokens`` tokens before the patches if those
    fill a grid of the input's proportions, and otherwise the fewest that leave such a grid.

    Parameters
    ----------
    shape
        Shape of the activations, without the batch axis.
    input_size
        (H, W) of the inputs, in pixels.
    prefix_tokens
        Number of tokens before the patch tokens; None if it is not known.

    Raises
    ------
    ValueError
        If the shape is neither a map nor a token sequence on a grid.
    """
    if len(shape) == 3:
        first, last = (shape[1], shape[2]), (shape[0], shape[1])
        if _distortion(first, input_size) <= _distortion(last, input_size):
            return Layout(shape, Units("channels", shape[0]), first)
        return Layout(shape, Units("tokens", math.prod(last)), last)
    if len(shape) == 2:
        guesses = range(min(MOST_PREFIX_TOKENS + 1, shape[0]))
        for prefix in guesses if prefix_tokens is None else (prefix_tokens, *guesses):
            grid = _grid(shape[0] - prefix, input_size)
            if grid is not None:
                return Layout(shape, Units("tokens", shape[0] - prefix), grid, prefix)
    raise ValueError(
        f"its output has the shape {('B', *shape)}, which is neither a map (B, D, h, w) or (B, h, w, D) nor "
        f"at most {MOST_PREFIX_TOKENS} prefix tokens before a grid of patch tokens (B, T, D)"
    )


def _distortion(grid: tuple[int, int], size: tuple[int, int]) -> float:
    """How far the proportions of two sizes differ: 0 if they are the same."""
    return abs(math.log(grid[0] * size[1]) - math.log(grid[1] * size[0]))


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The (h, w) with h * w == tokens and h / w == H / W, if there is one."""
    h = math.isqrt(max(tokens, 0) * size[0] // size[1])
    if h < 1 or tokens % h or h * size[1] != tokens // h * size[0]:
        return None
    return h, tokens // h
