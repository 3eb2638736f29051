"""A network of any number of bands whose maps are known in closed form, and what it gives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

CELL = 8  # pixels a side


def weights(channels: int) -> np.ndarray:
    """What each band counts; they add up to 1."""
    numbers = np.arange(1.0, channels + 1)
    return np.asarray(numbers / numbers.sum())


class Cells(nn.Module):
    """Logits of three classes from the means of 8x8 pixels, its layer ``cells``: (B, C, rows, columns).

    Class 1 has the mean over the cells, each times the number of its row, counted from 1, and weighted over
    the bands. Class 2 has the same by columns, and class 0 zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cells = nn.Conv2d(channels, channels, CELL, CELL, groups=channels, bias=False)
        self.cells.weight.data.fill_(1 / CELL**2)
        self.register_buffer("weights", torch.tensor(weights(channels), dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        means = torch.einsum("bchw,c->bhw", self.cells(inputs), self.weights)
        rows = torch.arange(1.0, means.shape[1] + 1, device=means.device)[:, None]
        columns = torch.arange(1.0, means.shape[2] + 1, device=means.device)
        return torch.stack([means * 0, means * rows, means * columns], 1).mean((2, 3)) * 4


def cells(channels: str = "3") -> nn.Module:
    """The network, as a job's callable."""
    return Cells(int(channels))


def tapped(channels: str) -> nn.Module:
    """An auxiliary network with taps ``0`` and ``1``, of 4 and 6 channels."""
    first, second = nn.Conv2d(int(channels), 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
    return nn.Sequential(first, second, nn.Flatten())


def means(inputs: np.ndarray) -> np.ndarray:
    """(N, C, rows, columns) means of the cells of inputs (N, C, H, W)."""
    n, c, height, width = inputs.shape
    cut = inputs.reshape(n, c, height // CELL, CELL, width // CELL, CELL)
    return np.asarray(cut.mean((3, 5)))


def gradients(inputs: np.ndarray) -> np.ndarray:
    """(C, rows, columns): the gradient of the logit of class 1 with respect to the cells."""
    found = means(inputs)
    rows = np.arange(1, found.shape[2] + 1)[:, None] * np.ones(found.shape[3])
    return np.asarray(weights(found.shape[1])[:, None, None] * rows * 4 / rows.size)


def probability(inputs: np.ndarray) -> np.ndarray:
    """(N,) probabilities of class 1 for inputs (N, C, H, W) in [0, 1]."""
    found = np.einsum("nchw,c->nhw", means(inputs), weights(inputs.shape[1]))
    rows, columns = np.arange(1, found.shape[1] + 1)[:, None], np.arange(1, found.shape[2] + 1)
    logits = 4 * np.stack([0 * found, found * rows, found * columns]).mean((2, 3))
    shares = np.exp(logits - logits.max(0))
    return np.asarray(shares[1] / shares.sum(0))


def occluded(inputs: np.ndarray) -> np.ndarray:
    """(N, H, W): what class 1 loses in probability when a quarter of the input is black, by quarter."""
    found = np.empty((len(inputs), *inputs.shape[2:]))
    height, width = inputs.shape[2] // 2, inputs.shape[3] // 2
    for top in (0, height):
        for left in (0, width):
            hidden = inputs.copy()
            hidden[:, :, top : top + height, left : left + width] = 0
            lost = probability(inputs) - probability(hidden)
            found[:, top : top + height, left : left + width] = lost[:, None, None]
    return found
