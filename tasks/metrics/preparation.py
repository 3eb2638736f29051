"""How raw maps are prepared for scoring, in one place, the same for every explainer and every metric."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from explainers.base import Status, statuses_of

RECORD = {
    "rectification": "ReLU on the native grid: evidence against the class counts as no evidence",
    "upsampling": "bilinear to the input's size, align_corners=False, no antialiasing",
    "normalisation": "min-max per map to [0, 1]",
    "all_zero": "stays zero",
    "constant": "a constant positive map becomes ones: everything kept",
    "not_finite": "becomes NaN, and so do its scores",
}


@torch.inference_mode()
def prepare(maps: Tensor, size: tuple[int, ...], sites: Tensor | None = None) -> tuple[Tensor, list[Status]]:
    """Prepare raw maps for scoring, as :data:`RECORD` says.

    Parameters
    ----------
    maps
        (B, \\*grid) floats, raw and signed, on the explainer's native grid.
    size
        The shape of the input's sites, (H, W) or (T,). Along each axis it is at least the grid's.
    sites
        (B, \\*size) bool: which sites can be hidden, and so have a value; all of them by default.

    Returns
    -------
    prepared, statuses
        (B, \\*size) float32 in [0, 1], with -inf where ``sites`` is False; a map that is not finite is NaN at
        all sites. One status per map, that of the map after rectification, so that a map without a positive
        value is ``all_zero``.

    Raises
    ------
    ValueError
        If the grid is finer than the input: interpolation would skip cells.
    """
    grid = tuple(maps.shape[1:])
    if any(cells > length for cells, length in zip(grid, size, strict=True)):
        has, takes = "x".join(map(str, grid)), "x".join(map(str, size))
        raise ValueError(f"maps on a grid of {has} are finer than the {takes} input")
    there = torch.ones(len(maps), *size, dtype=torch.bool, device=maps.device) if sites is None else sites
    # Only a map as fine as the input can have values of its own where there is nothing to hide.
    own = there if grid == tuple(size) else torch.ones_like(maps, dtype=torch.bool)
    finite = (maps.isfinite() | ~own).flatten(1).all(1)
    positive = maps.float().relu().masked_fill(~_like(finite, maps), torch.nan)
    low, high = _bounds(positive, own)
    # Maps are also stretched before the interpolation, so that its rounding errors are small compared with
    # the map's range even if the map varies little around a large value. Otherwise the result is the same.
    stretched = (positive - low) / (high - low)
    mode = "bilinear" if len(size) == 2 else "linear"
    upsampled = F.interpolate(stretched[:, None], size, mode=mode, align_corners=False)[:, 0]
    lowest, highest = _bounds(upsampled, there)
    # If there are few sites, they may all have the same value although the map has several.
    level = (low == high) | (lowest == highest)
    prepared = torch.where(level, (high > 0).float(), (upsampled - lowest) / (highest - lowest))
    return prepared.masked_fill(~there & _like(finite, there), -torch.inf), statuses_of(positive, own)


def unreadable(maps: Tensor) -> Tensor:
    """Return (B,) bool: which prepared (B, \\*sites) maps have NaN, and so no score."""
    return maps.isnan().flatten(1).any(1)


def _bounds(maps: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of each map where ``own`` is True, as (B, 1, ...)."""
    flat, away = maps.flatten(1), ~own.flatten(1)
    low, high = flat.masked_fill(away, torch.inf).amin(1), flat.masked_fill(away, -torch.inf).amax(1)
    return _like(low, maps), _like(high, maps)


def _like(values: Tensor, maps: Tensor) -> Tensor:
    """Reshape (B,) values to (B, 1, ...), so that they broadcast with maps."""
    return values.view(-1, *[1] * (maps.ndim - 1))
