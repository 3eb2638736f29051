"""From an image file to a run's input: decoding, and resize and crop with the boxes carried along."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from storage.files import UnreadableError

Box = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax: continuous pixel edges

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def decode(path: Path) -> Image.Image:
    """The image in a file as RGB, decoded to its last pixel.

    It is not turned as EXIF says: boxes are in the pixels of the file.

    Raises
    ------
    UnreadableError
        Whatever is wrong with it, in one line.
    """
    return _decoded(path, rgb)


def decode_mask(path: Path) -> Image.Image:
    """The mask in a file, white wherever a value is not 0, however many bits values have.

    Raises
    ------
    UnreadableError
        Whatever is wrong with it, in one line.
    """
    return _decoded(path, _not_zero)


def _not_zero(image: Image.Image) -> Image.Image:
    """Transparency apart; of a palette the colours count, as they are seen."""
    plain = image.mode in {"1", "L", "I", "F"} or image.mode.startswith("I;16")
    values = np.asarray(image if plain else image.convert("RGB"))
    there = values.any(-1) if values.ndim == 3 else values != 0
    return Image.fromarray(there)


def _decoded(path: Path, read: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        data = path.read_bytes()
        if not data:
            raise UnreadableError("the file is empty")
        with Image.open(BytesIO(data)) as image:
            return read(image)
    except UnreadableError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError("there is no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image of a known format") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything at damaged data
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; 16-bit grey is scaled, where Pillow would clip everything above 255 to white.

    Raises
    ------
    UnreadableError
        For 32-bit images, whose range nobody states.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise UnreadableError(f"32-bit images (mode {image.mode}) have no stated range; convert to 8 bit")
    return image.convert("RGB")


def prepare_image(
    image: Image.Image,
    boxes: Iterable[Box],
    resize: int | None,
    crop: int | None,
    interpolation: str = "bilinear",
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Resize and crop as ``torchvision.transforms.v2`` does with PIL images, boxes through the same geometry.

    Parameters
    ----------
    image
        RGB.
    boxes
        In pixels of ``image``.
    resize
        New length of the short side, antialiased; the long side is rounded down. None: as it is.
    crop
        Side of the square cut from the centre; a smaller image is padded with black. None: no crop.

    Returns
    -------
    pixels
        (3, H, W) uint8.
    boxes
        In pixels of the result, clipped to it; a box of which nothing is left is dropped.

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
        image = image.crop((left, top, left + crop, top + crop))  # black where it reaches beyond
    moved = (_move(box, scale, (left, top), image.size) for box in boxes)
    pixels = np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0))
    return pixels, [box for box in moved if box[2] > box[0] and box[3] > box[1]]


def _offset(side: int, crop: int) -> int:
    """Where the crop begins; torchvision pads the smaller half first and rounds half to even when cutting."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _move(box: Box, scale: tuple[float, float], offset: tuple[int, int], size: tuple[int, int]) -> Box:
    x0, x1 = (min(max(x * scale[0] - offset[0], 0.0), float(size[0])) for x in (box[0], box[2]))
    y0, y1 = (min(max(y * scale[1] - offset[1], 0.0), float(size[1])) for y in (box[1], box[3]))
    return x0, y0, x1, y1
