"""Parts of masked inputs: masks in [0, 1], and the blurred images that are shown where they are 0."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional as F


def rescaled(masks: Tensor) -> Tensor:
    """Shift and scale each mask (..., h, w) to [0, 1]; a constant mask becomes zero."""
    low, high = masks.amin((-2, -1), keepdim=True), masks.amax((-2, -1), keepdim=True)
    return (masks - low) / torch.where(high > low, high - low, 1)  # no division of a constant mask by zero


def rows_of(images: Tensor, rows: Tensor) -> Tensor:
    """The given rows (n,) of images (B, C, \\*sites); if B is 1, that single image, which broadcasts."""
    return images if len(images) == 1 else images.index_select(0, rows)


def gaussian_blur(inputs: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Blur images with a Gaussian; beyond its border an image is mirrored.

    The blur is one matrix product per axis, so that the Gaussian may be wider than the image.

    Parameters
    ----------
    inputs
        (B, C, H, W).
    sigma
        Standard deviation in pixels.
    radius
        Where the Gaussian is cut off, in pixels; by default 4 sigma.

    Returns
    -------
    Tensor
        (B, C, H, W).
    """
    # The filter applied to the identity matrix is the filter as a matrix.
    down, across = (
        torch.from_numpy(
            gaussian_filter1d(torch.eye(size).double().numpy(), sigma, axis=0, radius=radius)
        ).to(inputs)
        for size in inputs.shape[-2:]
    )
    return down @ inputs @ across.T


def kernel_blur(inputs: Tensor, size: int, sigma: float) -> Tensor:
    """Blur images with the kernel of RISE's code, which PAMI's authors use too; beyond the border are zeros.

    The kernel is a unit impulse on ``size`` x ``size`` pixels that was filtered by a Gaussian. What the
    Gaussian carries beyond the array is mirrored back into it, so that the kernel adds up to 1. It is not a
    Gaussian that was cut off: with a sigma of half the size or more it is nearly a box.

    Parameters
    ----------
    inputs
        (B, C, H, W).
    size
        Side of the kernel in pixels, odd.
    sigma
        Standard deviation of the Gaussian in pixels.

    Returns
    -------
    Tensor
        (B, C, H, W).
    """
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    kernel = torch.from_numpy(gaussian_filter1d(impulse, sigma)).to(inputs)
    planes = inputs.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, kernel[None, None, :, None], padding=(size // 2, 0))
    planes = F.conv2d(planes, kernel[None, None, None, :], padding=(0, size // 2))
    return planes.view_as(inputs)
