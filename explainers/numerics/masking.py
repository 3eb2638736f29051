"""What masked inputs are made of: masks in [0, 1], and the blurred image that is seen where they are 0."""

from __future__ import annotations

from typing import Literal

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor


def rescaled(masks: Tensor) -> Tensor:
    """(..., h, w) each shifted and scaled to [0, 1]; a constant one becomes zero."""
    low, high = masks.amin((-2, -1), keepdim=True), masks.amax((-2, -1), keepdim=True)
    return (masks - low) / torch.where(high > low, high - low, 1)


def rows_of(images: Tensor, rows: Tensor) -> Tensor:
    """The given rows of (B, C, \\*sites), or the only one, which broadcasts."""
    return images if len(images) == 1 else images.index_select(0, rows)


def gaussian_blur(
    inputs: Tensor,
    sigma: float,
    radius: int | None = None,
    beyond: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """(B, C, H, W) blurred with a Gaussian of ``sigma`` pixels, cut at ``radius``, by default 4 sigma.

    Beyond the borders lies the mirrored input (``reflect``) or zero (``constant``). Both axes are matrix
    products: the Gaussian may be wider than the input.
    """
    down, across = (
        torch.from_numpy(
            gaussian_filter1d(torch.eye(size).double().numpy(), sigma, axis=0, radius=radius, mode=beyond)
        ).to(inputs)
        for size in inputs.shape[-2:]
    )
    return down @ inputs @ across.T
