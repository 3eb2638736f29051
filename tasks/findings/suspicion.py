"""A suspicion: a region of the images of a class that the network may rely on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.findings.seen import Rows, dilated, enlarged

EXEMPLARS = 30  # images that stand for a suspicion, at most
LEAST_IMAGES = 10  # a suspicion of fewer images is not tested


@dataclass(frozen=True, eq=False)
class Suspicion:
    """A region of the images of one class, to be tested by intervention.

    Attributes
    ----------
    view
        Where it comes from: "places", "off_object_own", "off_object_mean", or the name of another view.
    target
        The class.
    exemplars
        (E,) rows of the images that stand for it, the strongest first; at most 30.
    region
        (H, W) bool, one region for all images, or (E, H, W) bool, one per exemplar; in pixels of the input.
    images
        How many images of the class the suspicion is about.
    strength
        Larger is stronger, about on the scale of a normal distribution. It orders the suspicions of a class,
        and is no evidence.
    """

    view: str
    target: int
    exemplars: Rows
    region: Tensor
    images: int
    strength: float

    @property
    def regions(self) -> Tensor:
        """(E, H, W) bool, the region of each exemplar."""
        if self.region.ndim == 3:
            return self.region
        return self.region.expand(len(self.exemplars), *self.region.shape)

    @property
    def footprint(self) -> Tensor:
        """(H, W) bool: the region, or where at least half as many exemplars' regions lie as anywhere."""
        if self.region.ndim == 2:
            return self.region
        counts = self.region.sum(0)
        return (counts > 0) & (2 * counts >= counts.max())


def salient(maps: Tensor, size: tuple[int, int], outside: Tensor | None = None) -> Tensor:
    """The pixels where a map has at least half of its largest value, and those one cell around them.

    Parameters
    ----------
    maps
        (n, h, w), not negative.
    size
        (H, W) of the input.
    outside
        (n, H, W) or (H, W) bool: pixels that do not count, such as those of the object.

    Returns
    -------
    Tensor
        (n, H, W) bool; nothing where the map is zero at all pixels that count.
    """
    fine = enlarged(maps, size)
    if outside is not None:
        fine = torch.where(outside, 0, fine)
    most = fine.amax((1, 2), keepdim=True)
    found = with_neighbours((fine >= most / 2) & (most > 0), (maps.shape[1], maps.shape[2]))
    return found if outside is None else found & ~outside


def with_neighbours(regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Regions (n, H, W) bool with one more cell of a map's grid (h, w) on all sides.

    A cell sees more of the input than its own pixels: that of a small cue is often dark, and those around it
    are bright.
    """
    down, across = (round(length / cells) for length, cells in zip(regions.shape[1:], grid, strict=True))
    return dilated(regions, down, across)
