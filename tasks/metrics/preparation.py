"""How a raw map is read before it is scored: one place, the same for every explainer and every metric."""

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
def prepare(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[Status]]:
    """Read raw maps for scoring, as :data:`RECORD` says.

    Parameters
    ----------
    maps
        (B, h, w) floats, raw and signed, on the explainer's native grid.
    size
        (H, W) of the input, no smaller than the grid.

    Returns
    -------
    prepared, statuses
        (B, H, W) float32 in [0, 1], or NaN throughout; and what became of each map after rectification, so a
        map with nothing positive is ``all_zero``.

    Raises
    ------
    ValueError
        If the grid is finer than the input: interpolation would skip cells.
    """
    grid = tuple(maps.shape[1:])
    if grid[0] > size[0] or grid[1] > size[1]:
        raise ValueError(
            f"maps on a grid of {grid[0]}x{grid[1]} are finer than the {size[0]}x{size[1]} input"
        )
    finite = maps.isfinite().flatten(1).all(1)
    positive = maps.float().relu().masked_fill(~finite[:, None, None], torch.nan)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    # Stretched once before interpolating, so that its rounding is small beside the map's span even if the
    # map varies little around a large value; the result is the same otherwise.
    upsampled = F.interpolate(_min_max(positive)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    prepared = torch.where(low == high, (high > 0).float(), _min_max(upsampled))
    return prepared, statuses_of(positive)


def unreadable(maps: Tensor) -> Tensor:
    """(B,) bool: which prepared (B, H, W) maps are NaN, and so have no score."""
    return maps.isnan().flatten(1).any(1)


def _min_max(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)
