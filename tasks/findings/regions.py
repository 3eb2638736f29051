"""Regions of images without the objects in them, and places elsewhere of the same area and shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAST_PIXELS = 16  # an image with a smaller region takes no part
_SLACK = 0.05  # of the region's area: by how much a matched place may be worse than the best one


def without(regions: Tensor, objects: Tensor | None) -> Tensor:
    """Regions (n, H, W) bool without the pixels of the objects (n, H, W) bool, if there are any."""
    return regions if objects is None else regions & ~objects


def area(regions: Tensor) -> Tensor:
    """(n,) pixels of each region."""
    return regions.flatten(1).sum(1)


def matched_places(regions: Tensor, blocked: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Move each region to other places of its image.

    A region moves over the edge of the image and comes in on the other side, so that its area stays. The
    places are drawn from those that hit the least of what is blocked.

    Parameters
    ----------
    regions
        (n, H, W) bool.
    blocked
        (n, H, W) bool: pixels that a moved region should leave alone: the region itself and the object.
    count
        How many places to draw for each region.
    rng
        Draws the places.

    Returns
    -------
    Tensor
        (n, count, H, W) bool, without the blocked pixels.
    """
    n, height, width = regions.shape
    hits = _hits(regions, blocked)
    allowed = hits <= hits.amin(1, keepdim=True) + _SLACK * area(regions)[:, None]
    order = torch.from_numpy(rng.random((n, height * width)))
    order = torch.where(allowed, order, 2 + hits)  # if fewer are allowed, the next best follow
    shifts = order.argsort(1)[:, :count]
    moved = _rolled(regions, shifts // width, shifts % width)
    return moved & ~blocked[:, None]


def _hits(regions: Tensor, blocked: Tensor) -> Tensor:
    """(n, H W) how many blocked pixels a region hits after each shift, in row-major order."""
    spectrum = torch.fft.rfft2(regions.float()).conj() * torch.fft.rfft2(blocked.float())
    return torch.fft.irfft2(spectrum, s=regions.shape[1:]).round().flatten(1)


def _rolled(regions: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Roll regions (n, H, W) by shifts (n, k) each, to (n, k, H, W)."""
    n, height, width = regions.shape
    rows = (torch.arange(height) - down[..., None]) % height
    columns = (torch.arange(width) - across[..., None]) % width
    images = torch.arange(n)[:, None, None, None]
    return regions[images, rows[..., :, None], columns[..., None, :]]
