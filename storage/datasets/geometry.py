"""Resizing and cropping of an image together with its boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixel edges: a 5x5 image is (0, 0, 5, 5)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def prepare_image(
    image: Image.Image,
    boxes: Iterable[Box],
    resize: int | None,
    crop: int | None,
    interpolation: str = "bilinear",
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Resize and crop an image as ``torchvision.transforms.v2`` does with PIL images, and move its boxes.

    Parameters
    ----------
    image
        Image in RGB.
    boxes
        Boxes in pixels of ``image``.
    resize
        New length of the short side in pixels, antialiased; the long side is rounded down. None keeps both.
    crop
        Side in pixels of the square that is cut from the centre; a smaller image is padded with black. None
        cuts nothing.
    interpolation
        Name of Pillow's filter for resizing.

    Returns
    -------
    pixels
        (3, H, W) uint8.
    boxes
        Boxes in pixels of the result, clipped to it; a box of which nothing is left is dropped.

    Raises
    ------
    ValueError
        If the interpolation is unknown.
    """
    if interpolation not in _RESAMPLING:
        raise ValueError(f"unknown interpolation {interpolation!r}; choose from {', '.join(_RESAMPLING)}")
    old = image.size
    if resize is not None:
        short = min(old)
        width, height = (resize if side == short else int(resize * side / short) for side in old)
        if (width, height) != old:
            image = image.resize((width, height), _RESAMPLING[interpolation])
    scale = image.width / old[0], image.height / old[1]
    left = top = 0
    if crop is not None:
        left, top = _offset(image.width, crop), _offset(image.height, crop)
        image = image.crop((left, top, left + crop, top + crop))  # Pillow fills with black outside the image
    moved = (_move(box, scale, (left, top), image.size) for box in boxes)
    pixels = np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0))
    return pixels, [box for box in moved if box[2] > box[0] and box[3] > box[1]]


def _offset(side: int, crop: int) -> int:
    """Return the first pixel of the crop; it is negative if the image is smaller than the crop.

    torchvision pads the smaller half first, and rounds half to even when it cuts.
    """
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _move(box: Box, scale: tuple[float, float], offset: tuple[int, int], size: tuple[int, int]) -> Box:
    """Scale and shift a box, and clip it to the size (width, height) of the result."""
    x0, x1 = (min(max(x * scale[0] - offset[0], 0.0), float(size[0])) for x in (box[0], box[2]))
    y0, y1 = (min(max(y * scale[1] - offset[1], 0.0), float(size[1])) for y in (box[1], box[3]))
    return x0, y0, x1, y1
