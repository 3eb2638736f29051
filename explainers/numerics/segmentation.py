"""How an input is split into the regions that PAMI shows one at a time: windows, or segments of an image.

Sizes in pixels are those for an image whose short side is 224; for another one, ``scale`` = short side / 224
times as long, they are in proportion (CHOICE): lengths times ``scale``; areas, and Felzenszwalb's scale,
which is weighed against them, times its square; the watershed's compactness, a price a pixel, divided by it.
Numbers of segments stay.
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
    ximgproc = getattr(cv2, "ximgproc", None)  # in OpenCV's contrib builds alone

_ROUNDING = 1 + 1e-9  # so that a pixel on a disc's edge is in it at every scale
_SEEDS_SCALE = 32 / 224  # five levels of blocks do not fit into fewer pixels, and OpenCV 5.0 crashes
_AHEAD = 16  # inputs segmented, or on their way, before they are asked for


class Partition(Protocol):
    """Splits inputs of one kind into regions, each split being a label map over the input's sites."""

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """(L, \\*sites) whole numbers of each input in turn.

        The sites of one label map with the same label, 1 or more, are one region; sites labelled 0 are in
        none. Label maps of inputs of one shape have the same L.
        """
        ...


class Windows:
    """Runs of neighbouring units, of every length and at every place: tokens or words of a text, numbers.

    An input of fewer units than a length has one window of that length, which holds all of them.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """(L, T) int64 of (T,) whole numbers: the unit 0, 1, ... each site belongs to, or -1.

        L is what the lengths up to T add up to.
        """
        for units in inputs:
            lengths = dict.fromkeys(min(length, units.shape[-1]) for length in self.lengths)
            yield torch.cat([self._of_length(units, length) for length in lengths])

    def _of_length(self, units: Tensor, length: int) -> Tensor:
        """(length, T): a label map holds the windows that begin ``length`` units apart."""
        count = int(units.max()) + 1
        offset = torch.arange(length, device=units.device)[:, None]
        first = (units - offset).div(length, rounding_mode="floor") * length + offset
        whole = (units >= offset) & ((first + length <= count) | ((first == 0) & (count < length)))
        return torch.where(whole, first.div(length, rounding_mode="floor") + 1, 0)


class SlidingWindow:
    """Discs around the points of a grid, over inputs (3, H, W): the same for every input.

    The grid starts in pixel (0, 0) and goes on in steps of ``stride`` pixels, which may be fractions, as long
    as it is inside the input. A disc holds the pixels whose centres are ``radius`` pixels from its own or
    nearer, however the last digits of fractions fall.
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
        """(G * G, H, W): discs that are G steps apart cannot meet, and share a map."""
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
        """Of the grid lines ``every`` steps apart, the nearest to each pixel: its number, and how far it is.

        (every, size) int64 and (every, size) float64 in pixels, by the step at which the lines begin;
        infinite where there is none.
        """
        first = torch.arange(every)[:, None]
        last = (math.ceil(size / self.stride / _ROUNDING) - 1 - first).div(every, rounding_mode="floor")
        pixel = torch.arange(size, dtype=torch.float64)
        nearest = ((pixel / self.stride - first) / every).round().long().minimum(last).clamp(min=0)
        distance = (pixel - (first + nearest * every).double() * self.stride).abs()
        return nearest, torch.where(last >= 0, distance, torch.inf)


Segmentation = Callable[[np.ndarray], np.ndarray]  # from (H, W, 3) uint8 to integers (H, W)


class PreSegmentation:
    """Segmentations of an image (3, H, W) in [0, 1], rounded to 8 bits: PAMI's 20, or 17 without SEEDS.

    Felzenszwalb, SLIC and watershed are scikit-image's, SEEDS is that of OpenCV's contrib builds: it is left
    out where no such build is installed, and of images under 32 pixels.

    They run in threads, as many as PyTorch's, up to 16 images ahead of the one that is asked for. Processes,
    which Dask's workers may not start, would gain little, since the libraries let go of the interpreter: on a
    busy machine MobileNetV2 made 7.1 images a second beside such a thread and 7.9 beside such a process.

    Parameters
    ----------
    scale
        Short side of the images over 224 pixels.
    superpixels
        The largest number that SLIC is asked for: 10, 20, ... up to this one.
    """

    def __init__(self, scale: float, superpixels: int = 80) -> None:
        self.segmentations = segmentations(scale, superpixels)

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        waiting: deque[Any] = deque()
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            for image in inputs:
                pixels = (image * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
                waiting.append([pool.submit(_labels, segment, pixels) for segment in self.segmentations])
                if len(waiting) > _AHEAD:
                    yield _gathered(waiting.popleft())
            while waiting:
                yield _gathered(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def segmentations(scale: float, superpixels: int = 80) -> list[Segmentation]:
    """The authors' settings, for images of ``scale``."""
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
