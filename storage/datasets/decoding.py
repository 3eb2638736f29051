"""Decoding of image files and mask files."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from storage.errors import one_line
from storage.files import UnreadableError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


def decode(path: Path) -> Image.Image:
    """Decode all pixels of the image in a file, as RGB.

    The image is not rotated by its EXIF data, because boxes are in the pixels of the file.

    Raises
    ------
    UnreadableError
        If the file cannot be decoded; the message is the reason in one line.
    """
    return _decoded(path, rgb)


def decode_mask(path: Path) -> Image.Image:
    """Decode the mask in a file: white wherever a value is not 0, for any number of bits per value.

    Raises
    ------
    UnreadableError
        If the file cannot be decoded; the message is the reason in one line.
    """
    return _decoded(path, not_zero)


def not_zero(image: Image.Image) -> Image.Image:
    """Return a mask that is white where a pixel is not 0.

    Transparency is ignored. In an image with a palette the colours count, not the indices.
    """
    # Converting grey images with more than 8 bits to RGB would clip their values.
    plain = image.mode in {"1", "L", "I", "F"} or image.mode.startswith("I;16")
    values = np.asarray(image if plain else image.convert("RGB"))
    there = values.any(-1) if values.ndim == 3 else values != 0
    return Image.fromarray(there)


def _decoded(path: Path, read: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Open an image file and apply ``read``; every error of the file is an UnreadableError."""
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
    except MemoryError:  # says something about this machine, not about the file
        raise
    except Exception as error:  # Pillow's decoders raise almost any error for damaged data
        raise UnreadableError(one_line(error)) from error


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB.

    16-bit grey is scaled to 8 bits, while Pillow would clip all values above 255 to white.

    Raises
    ------
    UnreadableError
        If the image has 32 bits per pixel value, because the range of its values is not stated.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise UnreadableError(f"32-bit images (mode {image.mode}) have no stated range; convert to 8 bit")
    return image.convert("RGB")
