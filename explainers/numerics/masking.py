"""Parts of masked inputs: masks in [0, 1], and the blurred image that is shown where they are 0."""

from __future__ import annotations

from typing import Literal

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor


def rescaled(masks: Tensor) -> Tensor:
    """Shift and scale each mask (..., h, w) to [0, 1]; a constant mask becomes zero."""
    low, high = masks.amin((-2, -1), keepdim=True), masks.amax((-2, -1), keepdim=True)
    return (masks - low) / torch.where(high > low, high - low, 1)  # no division of a constant mask by zero


def rows_of(images: Tensor, rows: Tensor) -> Tensor:
    """The given rows (n,) of images (B, C, \\*sites); if B is 1, that single image, which broadcasts."""
    return images if len(images) == 1 else images.index_select(0, rows)


def gaussian_blur(
    inputs: Tensor,
    sigma: float,
    radius: int | None = None,
    beyond: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """Blur images with a Gaussian.

    The blur is one matrix product per axis, so that the Gaussian may be wider than the image.

    Parameters
    ----------
    inputs
        (B, C, H, W).
    sigma
        Standard deviation in pixels.
    radius
        Where the Gaussian is cut off, in pixels; by default 4 sigma.
    beyond
        What lies outside of the image: the mirrored image (``reflect``), or zero (``constant``).

    Returns
    -------
    Tensor
        (B, C, H, W).
    """
    # The filter applied to the identity matrix is the filter as a matrix.
    down, across = (
        torch.from_numpy(
            gaussian_filter1d(torch.eye(size).double().numpy(), sigma, axis=0, radius=radius, mode=beyond)
        ).to(inputs)
        for size in inputs.shape[-2:]
    )
    return down @ inputs @ across.T
