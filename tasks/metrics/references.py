"""The map of the reference columns of localisation: that of a control that looks at no image."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.controls import CenterGaussianParameters, center_gaussian
from tasks.metrics.preparation import prepare


def center_map(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the control ``center_gaussian`` of default width, prepared as any map: (H, W) in [0, 1]."""
    gaussian = center_gaussian(size, CenterGaussianParameters().sigma)
    return prepare(gaussian[None], size)[0][0].to(device)
