"""What a run has seen: the maps of one explainer over a dataset, as the search for findings reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Rows = NDArray[np.int64]

SIDE = 16  # cells per side of a pooled map, at most
_DILATION = 0.03  # of the shorter side of the input: how far an object is made larger on all sides


@dataclass(frozen=True, eq=False)
class Seen:
    """N maps of one explainer, with the images that they explain.

    Attributes
    ----------
    maps
        (N, h, w) float32, as :func:`pooled` makes them.
    classes
        (N,) the class that each map explains, which is the one that the network predicts.
    labels
        (N,) the true class; -1 where it is not known.
    shares
        (N,) how much of each map lies on the object, as :func:`share_on_objects` says; NaN where the image
        has no object. None without boxes and masks.
    images
        From rows (n,) to inputs (n, C, H, W), as the network takes them.
    objects
        From rows (n,) to the pixels of their boxes or masks, (n, H, W) bool on the CPU, not made larger. None
        without boxes and masks.
    seed
        The seed of the job. All random choices follow from it, the class and the view.
    """

    maps: Tensor
    classes: Rows
    labels: Rows
    shares: NDArray[np.float64] | None
    images: Callable[[Rows], Tensor]
    objects: Callable[[Rows], Tensor] | None
    seed: int = 0

    @cached_property
    def powers(self) -> Tensor:
        """(N, 2 h w) float64: the values of each map, and after them their squares."""
        values = self.maps.flatten(1).double()
        return torch.cat([values, values.square()], 1)

    @cached_property
    def total(self) -> Tensor:
        """(2 h w,) the sum of :attr:`powers` over all maps."""
        return self.powers.sum(0)

    def rows_of(self, target: int) -> Rows:
        """The images (n,) that the network takes for the class ``target``."""
        return np.flatnonzero(self.classes == target)

    def others(self, target: int) -> Rows:
        """The images (n,) that are neither of the class ``target`` nor taken for it."""
        return np.flatnonzero((self.classes != target) & (self.labels != target))

    def grown_objects(self, rows: Rows) -> Tensor | None:
        """The objects (n, H, W) bool, made larger by :func:`grown`; None without boxes and masks."""
        return None if self.objects is None else grown(self.objects(rows))


def pooled(maps: Tensor) -> Tensor:
    """Pool maps to at most 16x16 cells and scale them to shares.

    Parameters
    ----------
    maps
        (n, h, w), raw and signed. Evidence against the class counts as none.

    Returns
    -------
    Tensor
        (n, min(h, 16), min(w, 16)) float32 that adds up to 1 per map. Maps that are not finite, or zero
        everywhere, are all zeros.
    """
    positive = maps.float().relu()
    finite = maps.isfinite().flatten(1).all(1)
    positive = torch.where(finite[:, None, None], positive, 0)
    height, width = maps.shape[1:]
    cells = F.adaptive_avg_pool2d(positive, (min(height, SIDE), min(width, SIDE)))
    total = cells.sum((1, 2), keepdim=True)
    return cells / torch.where(total > 0, total, 1)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate maps (n, h, w) to ``size`` (H, W), bilinear."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def grown(objects: Tensor) -> Tensor:
    """Make objects (n, H, W) bool larger by 3 % of the shorter side on all sides, 2 pixels of 64.

    The network sees the edge of an object from beside it, and what lies there belongs to the object.
    """
    reach = margin(objects.shape[1:])
    return dilated(objects, reach, reach)


def dilated(regions: Tensor, down: int, across: int) -> Tensor:
    """Make regions (n, H, W) bool larger by some rows above and below, and some columns on both sides."""
    wide = F.max_pool2d(regions[:, None].float(), (1, 2 * across + 1), 1, (0, across))
    return F.max_pool2d(wide, (2 * down + 1, 1), 1, (down, 0))[:, 0] > 0


def margin(size: tuple[int, ...]) -> int:
    """By how many pixels an object on an input of this size (H, W) is made larger; 1 or more."""
    return max(1, round(_DILATION * min(size)))


def share_on_objects(maps: Tensor, objects: Tensor) -> Tensor:
    """Return how much of each map lies on its object.

    Parameters
    ----------
    maps
        (n, h, w), as :func:`pooled` makes them.
    objects
        (n, H, W) bool, made larger.

    Returns
    -------
    Tensor
        (n,) in [0, 1]; NaN where there is no object, or where the map is zero everywhere.
    """
    fine = enlarged(maps, tuple(objects.shape[1:]))  # type: ignore[arg-type]
    share = (fine * objects).sum((1, 2)) / fine.sum((1, 2))
    return share.masked_fill(~objects.flatten(1).any(1), torch.nan)
