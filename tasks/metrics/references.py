"""The map localisation is compared with: what a control that looks at no image scores on the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.controls import CenterGaussianParameters, center_gaussian
from tasks.metrics.preparation import prepare


def center_map(size: tuple[int, int], device: torch.device) -> Tensor:
    """(H, W) in [0, 1]: the control ``center_gaussian`` with its default width, prepared as any map."""
    gaussian = center_gaussian(size, CenterGaussianParameters().sigma)
    return prepare(gaussian[None], size)[0][0].to(device)
