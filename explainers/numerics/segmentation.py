"""Split an input into the regions that PAMI shows one at a time: windows, or segments of an image.

Sizes in pixels are given for an image whose short side is 224. For another image they are scaled in
proportion (CHOICE), with ``scale`` = short side / 224: lengths are multiplied by ``scale``; areas, and
Felzenszwalb's scale, which is compared with areas, by its square; the watershed's compactness, a cost per
pixel, is divided by ``scale``. Numbers of segments stay the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from skimage.color import rgb2gray
from skimage.filters import sobel
from skimage.segmentation import felzenszwalb, slic, watershed
from torch import Tensor

try:
    import cv2
except ImportError:
    ximgproc: Any = None
else:
    ximgproc = getattr(cv2, "ximgproc", None)  # only OpenCV's contrib builds have it

_ROUNDING = 1 + 1e-9  # so that a pixel on the edge of a disc belongs to it at every scale
_SEEDS_SCALE = 32 / 224  # five levels of blocks do not fit into fewer pixels, and OpenCV 5.0 crashes then
_AHEAD = 16  # inputs that are segmented, or being segmented, before they are requested


class Partition(Protocol):
    """Splits inputs of one kind into regions; each split is a label map over the input's sites."""

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Yield the label maps of each input in turn.

        The sites of one label map that have the same label, 1 or more, are one region; sites with the label
        0 are in no region.

        Yields
        ------
        Tensor
            (L, \\*sites) whole numbers; L is the same for all inputs of one shape.
        """
        ...


class Windows:
    """Windows of neighbouring units (tokens, words or numbers), of several lengths and at every place.

    If an input has fewer units than a length, it has one window of that length, which holds all units.

    Parameters
    ----------
    lengths
        Lengths of the windows, in units.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Yield label maps (L, T) int64 of each input.

        An input is (T,) whole numbers: the number 0, 1, ... of the unit that each site belongs to, or -1 if
        it belongs to none. L is the sum of the lengths, each counted as T at most.
        """
        for units in inputs:
            lengths = dict.fromkeys(min(length, units.shape[-1]) for length in self.lengths)
            yield torch.cat([self._of_length(units, length) for length in lengths])

    def _of_length(self, units: Tensor, length: int) -> Tensor:
        """Label maps (length, T); each one holds the windows that begin ``length`` units apart."""
        count = int(units.max()) + 1
        offset = torch.arange(length, device=units.device)[:, None]
        first = (units - offset).div(length, rounding_mode="floor") * length + offset
        whole = (units >= offset) & ((first + length <= count) | ((first == 0) & (count < length)))
        return torch.where(whole, first.div(length, rounding_mode="floor") + 1, 0)


class SlidingWindow:
    """Discs around the points of a grid, over inputs (C, H, W); they are the same for every input.

    The points of the grid are ``stride`` pixels apart, beginning with pixel (0, 0), as far as they are inside
    the input. A disc holds the pixels whose centres are at most ``radius`` pixels from its own centre; how
    fractions are rounded in their last digits makes no difference.

    Parameters
    ----------
    radius
        In pixels.
    stride
        In pixels; it may be a fraction.
    """

    def __init__(self, radius: float, stride: float) -> None:
        self.radius, self.stride = radius, stride

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        labels = None
        for image in inputs:
            if labels is None:
                labels = self._labels(image.shape[-2], image.shape[-1])
            yield labels

    def _labels(self, height: int, width: int) -> Tensor:
        """Label maps (G * G, H, W); discs that are G steps apart cannot overlap, so they share a map."""
        G = math.floor(2 * self.radius / self.stride) + 1
        row, down = self._nearest(height, every=G)
        column, across = self._nearest(width, every=G)
        columns = int(column.max()) + 1
        maps = []
        for i in range(G):
            inside = down[i, :, None] ** 2 + across[:, None, :] ** 2 <= self.radius**2 * _ROUNDING
            numbers = 1 + row[i, :, None] * columns + column[:, None, :]
            maps.append(torch.where(inside, numbers, 0).short())
        return torch.cat(maps)

    def _nearest(self, size: int, every: int) -> tuple[Tensor, Tensor]:
        """Find the nearest grid line to each pixel of an axis, among lines that are ``every`` steps apart.

        Returns
        -------
        nearest, distance
            (every, size) int64, the number of the line, and (every, size) float64, its distance in pixels,
            infinite where there is no line. Row i is for the lines that begin at step i.
        """
        first = torch.arange(every)[:, None]
        last = (math.ceil(size / self.stride / _ROUNDING) - 1 - first).div(every, rounding_mode="floor")
        pixel = torch.arange(size, dtype=torch.float64)
        nearest = ((pixel / self.stride - first) / every).round().long().minimum(last).clamp(min=0)
        distance = (pixel - (first + nearest * every).double() * self.stride).abs()
        return nearest, torch.where(last >= 0, distance, torch.inf)


Segmentation = Callable[[np.ndarray], np.ndarray]  # from (H, W, 3) uint8 to integers (H, W)


class PreSegmentation:
    """Segmentations of an image (C, H, W) in [0, 1], rounded to 8 bits: PAMI's 20, or 17 without SEEDS.

    CHOICE: an image of another number of channels than three is segmented in grey: the mean of its channels,
    stretched to its own smallest and largest value, because 16 bits may lie in a few of the 8-bit steps.

    Felzenszwalb, SLIC and watershed are those of scikit-image. SEEDS is that of OpenCV's contrib builds; it
    is left out if no such build is installed, and for images of less than 32 pixels.

    They run in as many threads as PyTorch has, up to 16 images ahead of the requested one. Processes, which
    Dask's workers may not start, would gain little, since the libraries release the interpreter's lock: on a
    busy machine MobileNetV2 processed 7.1 images per second beside such a thread and 7.9 beside such a
    process.

    Parameters
    ----------
    scale
        Short side of the images, divided by 224 pixels.
    superpixels
        The largest number of segments for SLIC, which runs with 10, 20, ... up to this number.
    """

    def __init__(self, scale: float, superpixels: int = 80) -> None:
        self.segmentations = segmentations(scale, superpixels)

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        waiting: deque[Any] = deque()
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            for image in inputs:
                pixels = (_colours(image) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
                waiting.append([pool.submit(_labels, segment, pixels) for segment in self.segmentations])
                if len(waiting) > _AHEAD:
                    yield _gathered(waiting.popleft())
            while waiting:
                yield _gathered(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _colours(image: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] from (C, H, W): colours as they are, and all else in grey."""
    if len(image) == 3:
        return image
    grey = image.mean(0, keepdim=True)
    low, high = grey.amin(), grey.amax()
    return ((grey - low) / (high - low).clamp(min=torch.finfo(grey.dtype).tiny)).expand(3, -1, -1)


def segmentations(scale: float, superpixels: int = 80) -> list[Segmentation]:
    """PAMI's segmentations with the authors' settings, for images of ``scale``.

    Parameters
    ----------
    scale
        Short side of the images, divided by 224 pixels.
    superpixels
        The largest number of segments for SLIC.
    """
    smallest = max(1, round(784 * scale**2))
    found: list[Segmentation] = [
        partial(felzenszwalb, scale=k * scale**2, sigma=0.8 * scale, min_size=smallest)
        for k in (250, 200, 150, 100, 70, 50)
    ]
    found += [partial(slic, n_segments=n, compactness=20) for n in range(10, superpixels + 1, 10)]
    found += [partial(_watershed, markers=n, compactness=1e-4 / scale) for n in (10, 20, 30)]
    if ximgproc is not None and scale >= _SEEDS_SCALE:
        found += [partial(_seeds, superpixels=n) for n in (10, 20, 30)]
    return found


def _watershed(image: np.ndarray, markers: int, compactness: float) -> np.ndarray:
    basins: np.ndarray = watershed(sobel(rgb2gray(image)), markers=markers, compactness=compactness)
    return basins


def _seeds(image: np.ndarray, superpixels: int) -> np.ndarray:
    height, width, channels = image.shape
    seeds = ximgproc.createSuperpixelSEEDS(
        width, height, channels, superpixels, num_levels=5, histogram_bins=5, double_step=True
    )
    seeds.iterate(image, num_iterations=10)
    labels: np.ndarray = seeds.getLabels()
    return labels


def _labels(segment: Segmentation, image: np.ndarray) -> np.ndarray:
    """(H, W) int16 labels 1, 2, ... without gaps."""
    _, labels = np.unique(segment(image), return_inverse=True)
    return (labels + 1).astype(np.int16)


def _gathered(futures: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack([future.result() for future in futures]))
