"""Images of any number of bands, and of 8 bits, 16 bits or floats per value, as arrays (C, H, W).

Images of three bands and 8 bits are decoded by :mod:`storage.datasets.decoding`, as Pillow converts them.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.datasets.arrays import check_size
from storage.datasets.decoding import (
    check_pixels,
    contents,
    decoded,
    is_animated,
    loaded,
    rgb,
    turned,
)
from storage.datasets.depth import has_deep_colours, own_depth, scaled, states_range
from storage.datasets.dicom import is_dicom, read_dicom
from storage.datasets.notes import FIRST_FRAME, Notes
from storage.datasets.reading import ALIKE, DEFAULT, RGB, Reading
from storage.datasets.tiff import TIFF, read_tiff
from storage.errors import one_line
from storage.files import UnreadableError

NUMPY = b"\x93NUMPY"  # the first bytes of an ``.npy`` file
_AS_THEY_ARE = frozenset({"LA", "RGBA", "RGBX", "CMYK"})  # Pillow's modes of 2 and 4 bands


class _Values(NamedTuple):
    """The values of a file (bands, H, W), and its EXIF orientation before and after they were read.

    ``full`` says that the file states its own range, which its values were scaled from already.
    """

    values: NDArray[Any]
    declared: int = 1
    left: int = 1
    full: bool = False


def read_image(path: Path, how: Reading = DEFAULT, notes: Notes | None = None) -> Image.Image | NDArray[Any]:
    """Read an image file as the model takes it.

    Parameters
    ----------
    path
        An ``.npy`` file, a DICOM or TIFF file of any number of bands, or an image file that Pillow reads.
    how
        How it is read.
    notes
        A list to which is appended what was done to the image.

    Returns
    -------
    Image or NDArray
        An image in RGB, see :func:`storage.datasets.decoding.rgb`. If the model takes other bands or bits, or
        the file is an ``.npy`` file, an array (C, H, W): uint8 or uint16, whose largest value is 1 for the
        network, or float32 in [0, 1].

    Raises
    ------
    UnreadableError
        If the file cannot be read, has another number of bands, or has values whose range is not known. The
        message is the reason in one line.
    """
    return read_encoded(contents(path), how, [] if notes is None else notes)


def _read_bands(data: bytes, how: Reading, notes: Notes) -> NDArray[Any]:
    """Read the contents of an image file as an array of ``how.bands``."""
    if is_dicom(data):
        found = _Values(read_dicom(data, how.window, notes), full=True)
    elif data.startswith(NUMPY):
        found = _Values(_of_array(data, how.bands.channels))
    elif data.startswith(TIFF) and (held := read_tiff(data, how.bands.channels, notes)) is not None:
        values, orientation = held
        found = _Values(values, orientation, orientation)
    else:
        found = decoded(data, lambda image: _of_image(image, how, notes, data))
    return _finished(found, how, notes)


def of_values(given: Image.Image | NDArray[Any], how: Reading, notes: Notes) -> Image.Image | NDArray[Any]:
    """Convert a Pillow image, or an array of the shape (H, W), (C, H, W) or (H, W, C), to what
    :func:`read_image` gives.
    """
    if isinstance(given, Image.Image):
        return as_image(given, how, notes)
    return _finished(_Values(_bands_of(given, how.bands.channels)), how, notes)


def read_encoded(data: bytes, how: Reading, notes: Notes) -> Image.Image | NDArray[Any]:
    """Read the contents of an image file as :func:`read_image` reads a file."""
    if how.bands != RGB or data.startswith(NUMPY):
        return _read_bands(data, how, notes)
    if is_dicom(data):  # resized as an image, as any other file of colours
        return Image.fromarray(np.moveaxis(_read_bands(data, how, notes), 0, -1))
    return decoded(data, lambda image: rgb(image, how, notes))


def as_image(image: Image.Image, how: Reading, notes: Notes) -> Image.Image | NDArray[Any]:
    """Convert an image that Pillow has opened to what :func:`read_image` gives."""
    if how.bands == RGB:
        return rgb(image, how, notes)
    return _finished(_of_image(image, how, notes, b""), how, notes)


def _finished(found: _Values, how: Reading, notes: Notes) -> NDArray[Any]:
    """Check the number of bands, scale their values, and turn them upright."""
    values = _as_many(found.values, how.bands.channels)
    limits = None if found.full else how.limits
    values = scaled(values, limits, notes, how.bands.stored or own_depth(values.dtype))
    if found.declared == 1:
        return np.ascontiguousarray(values)
    told: list[Notes] = [[] for _ in values]  # every band is turned, which is noted once
    made = [
        np.asarray(turned(Image.fromarray(band), found.declared, found.left, how, each))
        for band, each in zip(values, told, strict=True)
    ]
    notes += told[0]
    return np.stack(made)


def _as_many(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return values with as many bands as the model takes; grey is repeated for colours, and the reverse."""
    bands = len(values)
    if bands == channels:
        return values
    if bands == 1 and channels == 3:
        return np.repeat(values, 3, 0)
    if bands == 3 and channels == 1 and (values == values[:1]).all():
        return values[:1]
    colours = " of different colours" if bands == 3 and channels == 1 else ""
    raise UnreadableError(f"has {_counted(bands)}{colours}, and the model takes {channels} (model.channels)")


def _counted(bands: int) -> str:
    return f"{bands} band{'s' * (bands != 1)}"


# Arrays


def _of_array(data: bytes, channels: int) -> NDArray[Any]:
    """Read an ``.npy`` file of the shape (H, W), (C, H, W) or (H, W, C)."""
    try:
        check_size(BytesIO(data), len(data))
        values = np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # a damaged header is Python text, for which almost any error is raised
        raise UnreadableError(f"not an .npy file of numbers: {one_line(error)}") from error
    return _bands_of(values, channels)


def _bands_of(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return the values of an array of the shape (H, W), (C, H, W) or (H, W, C) as (C, H, W)."""
    if values.ndim not in {2, 3}:
        raise UnreadableError(f"has the shape {values.shape}; an image is (H, W), (C, H, W) or (H, W, C)")
    values = values[None] if values.ndim == 2 else np.moveaxis(values, _bands_axis(values.shape, channels), 0)
    check_pixels(*values.shape[1:])
    return values


def _bands_axis(shape: tuple[int, ...], channels: int) -> int:
    """Which axis of an array holds the bands: the first one or the last one."""
    for wanted in (channels, *(ALIKE if channels in ALIKE else ())):
        found = [axis for axis in (0, 2) if shape[axis] == wanted]
        if len(found) == 2:
            raise UnreadableError(
                f"has the shape {shape}, whose bands may come first or last; write it so that only one of "
                f"these sides is {wanted}"
            )
        if found:
            return found[0]
    raise UnreadableError(f"has the shape {shape}, and the model takes {channels} bands (model.channels)")


# Files that Pillow reads


def _of_image(image: Image.Image, how: Reading, notes: Notes, data: bytes) -> _Values:
    """Read an image that Pillow has opened; ``data`` is its file, or empty where there is none."""
    channels = how.bands.channels
    found = _of_bands(image, how, data)
    if found is not None:
        if is_animated(image):
            notes.append(FIRST_FRAME)
        return found
    if channels in ALIKE:  # upright already, and transparent pixels are on the background
        return _Values(np.moveaxis(np.asarray(rgb(image, how, notes)), -1, 0))
    return _Values(np.empty((len(image.getbands()), 1, 1), np.uint8))  # refused for its number of bands


def _of_bands(image: Image.Image, how: Reading, data: bytes) -> _Values | None:
    """Read the bands as they are; None for an image that has to become grey or colours first."""
    channels = how.bands.channels
    if how.bands.stored != "uint8" and has_deep_colours(image):
        return _of_deep_colours(image, data, channels)
    if how.bands.stored != "uint8" and (image.mode in {"I", "F"} or image.mode.startswith("I;16")):
        stated = states_range(image)
        declared, left = loaded(image)
        values = np.asarray(image)[None]
        clear = image.info.get("transparency")
        if isinstance(clear, int) and (values == clear).any():
            raise UnreadableError("has more than 8 bits and transparent pixels; set dataset.depth = 8")
        values = values.astype(np.uint16) if stated else values
        return _Values(values, declared, left, stated)
    if channels not in ALIKE and len(image.getbands()) == channels and image.mode in _AS_THEY_ARE:
        declared, left = loaded(image)
        return _Values(np.moveaxis(np.asarray(image), -1, 0), declared, left)
    return None


def _of_deep_colours(image: Image.Image, data: bytes, channels: int) -> _Values:
    """Read colours of 16 bits, of which Pillow gives the 8 high ones."""
    import cv2  # imported late, because few files need it

    names = image.getbands()
    declared, left = loaded(image)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    fits = found is not None and found.dtype == np.uint16 and found.shape[2:] == (len(names),)
    if found is None or not fits or names[0] != "R":
        raise UnreadableError(
            f"has 16 bits per value (mode {image.mode}) in a way that is not read; set dataset.depth = 8, or "
            "write it as TIFF"
        )
    order = [2, 1, 0, 3][: len(names)]  # OpenCV's blue comes first
    values = np.moveaxis(found[..., order], -1, 0)
    if len(names) == 4 and channels == 3:
        if (values[3] != np.iinfo(np.uint16).max).any():
            raise UnreadableError("has 16 bits per colour and transparent pixels; set dataset.depth = 8")
        values = values[:3]
    return _Values(values, declared, left)
