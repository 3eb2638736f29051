"""One file with a map that another program made: a grey image, or an ``.npy`` file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from storage.datasets.arrays import check_size
from storage.datasets.decoding import contents, decoded, is_animated, loaded
from storage.datasets.depth import has_deep_colours
from storage.datasets.formats import ARRAY, formats
from storage.datasets.notes import Notes
from storage.datasets.tiff import TIFF, read_tiff
from storage.files import UnreadableError

IMAGES = (".png", ".tif", ".tiff")  # formats that keep the values that were written


def shape_of_map(path: Path) -> tuple[int, ...]:
    """Return the shape of the map in a file, of which only the beginning is read if that says it.

    A damaged file raises almost any error.
    """
    if path.suffix.lower() == ARRAY:
        with path.open("rb") as file:
            return header_of(file)[0]
    try:
        with Image.open(path, formats=formats()) as image:
            return image.height, image.width
    except UnidentifiedImageError:  # Pillow does not know all kinds of TIFF files that are read
        return read_map(path).shape


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of an array from the beginning of its file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def read_map(path: Path) -> NDArray[Any]:
    """Read the map in a file, with the values of the file.

    Raises
    ------
    UnreadableError
        If it cannot be read, or is no grey image that is shown as it is stored. An ``.npy`` file that is
        damaged raises almost any error.
    """
    data = contents(path)
    if data.startswith(b"\x93NUMPY"):
        check_size(BytesIO(data), len(data))
        return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    frames: Notes = []
    if data.startswith(TIFF) and (held := read_tiff(data, 1, frames)) is not None:
        _check_plain(bool(frames), held[1])
        return held[0]
    return decoded(data, _of_image)


def _of_image(image: Image.Image) -> NDArray[Any]:
    """Return the grey values of an image, as they are in the file."""
    if has_deep_colours(image):
        raise UnreadableError("is in colours of 16 bits; a map is grey")
    declared, _ = loaded(image)
    _check_plain(is_animated(image), declared)
    if image.mode in {"1", "L", "I", "F"} or image.mode.startswith("I;16"):
        return np.asarray(image)
    colours = np.asarray(image.convert("RGBA"))
    if (colours[..., :1] != colours[..., 1:3]).any() or (colours[..., 3] != 255).any():
        raise UnreadableError("is in colours or transparent; a map is grey: write its values, not a picture")
    return colours[..., 0]


def _check_plain(several: bool, orientation: int) -> None:
    """Raise UnreadableError for a file of several images, or one that is to be turned to be seen."""
    if several:
        raise UnreadableError("holds several images; a map is one")
    if orientation != 1:
        raise UnreadableError(f"has the EXIF orientation {orientation}; write the map upright, without one")
