"""Decoding of image files to 8-bit RGB."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from storage.datasets.depth import grey_factor, has_deep_colours, to_eight_bits
from storage.datasets.formats import formats
from storage.datasets.notes import COMPOSITED, FIRST_FRAME, NOT_TURNED, TURNED, Notes
from storage.datasets.reading import DEFAULT, Reading
from storage.errors import one_line
from storage.files import UnreadableError, regular

LARGEST = 1 << 30  # bytes of an image file
_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
_OPENING = Lock()  # the filters of warnings belong to all threads; opening reads no more than the header
_ORIENTATION = 274  # the EXIF tag; its value 1 stands for upright
# What makes an image with an orientation upright, and what undoes it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # the others undo themselves

Found = TypeVar("Found")


def decoded(data: bytes, read: Callable[[Image.Image], Found]) -> Found:
    """Open the image in the contents of a file and apply ``read``; every error is an UnreadableError."""
    try:
        with _opened(data) as image:
            check_pixels(image.height, image.width)
            return read(image)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image of a known format") from error
    except MemoryError:  # says something about this machine, not about the file
        raise
    except Exception as error:  # Pillow's decoders raise almost any error for damaged data
        raise UnreadableError(one_line(error)) from error


def check_pixels(height: int, width: int) -> None:
    """Raise UnreadableError if an image has no pixels, or more than are read."""
    if height * width > _PIXELS:
        raise UnreadableError(f"has {width}x{height} pixels; at most {_PIXELS} are read")
    if 0 in (height, width):
        raise UnreadableError(f"has {width}x{height} pixels, which is no image")


def contents(path: Path) -> bytes:
    """Read a regular file of bounded size.

    Raises
    ------
    UnreadableError
        If it is none, is empty or cannot be read; the message is the reason in one line.
    """
    try:
        size = regular(path).stat().st_size
        if size > LARGEST:
            raise UnreadableError(f"has {size} bytes; at most {LARGEST} are read")
        if not (data := path.read_bytes()):
            raise UnreadableError("the file is empty")
    except (UnreadableError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadableError("there is no such file") from error
    except Exception as error:  # a place on S3 raises errors of its own, and a name may hold a NUL
        raise UnreadableError(one_line(error)) from error
    return data


def _opened(data: bytes) -> Image.Image:
    with _OPENING, warnings.catch_warnings():
        # Pillow warns at the number of pixels at which this module raises an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(BytesIO(data), formats=formats())


def rgb(image: Image.Image, how: Reading = DEFAULT, notes: Notes | None = None) -> Image.Image:
    """Convert an image to 8-bit RGB, upright.

    Images are turned by their EXIF orientation, transparent pixels are put on the background, values of more
    than 8 bits are scaled, and of several frames the first one is taken. Colour profiles are not applied.

    Parameters
    ----------
    image
        Image of any mode.
    how
        How it is read.
    notes
        A list to which is appended what was done to the image.

    Raises
    ------
    UnreadableError
        If the image has 32 bits per value and no range is stated.
    """
    notes = [] if notes is None else notes
    deep = has_deep_colours(image)  # unknown after loading
    declared, left = loaded(image)
    made = _opaque(to_eight_bits(image, deep, how.limits, notes), how.background, notes)
    made = turned(made, declared, left, how, notes)
    if is_animated(image):
        notes.append(FIRST_FRAME)
    return made


def loaded(image: Image.Image) -> tuple[int, int]:
    """Decode the pixels of an image; return its EXIF orientation before and after that.

    Pillow turns TIFF files by itself, so they have none left. It scales values of 2 or 4 bits to 8, but not
    the value that the file calls transparent, which is scaled here.
    """
    factor = grey_factor(image)
    # Other formats must not be asked before: to find its EXIF data, Pillow would decode a PNG file, and after
    # an error it would decode it a second time without one.
    before = _orientation(image) if image.format == "TIFF" else 1
    image.load()
    if image.mode == "L" and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= int(factor)
    left = _orientation(image)
    return max(before, left), left


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; it is 1 if there is none or if it is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise almost any error, and the pixels do not need them
        return 1
    return known_orientation(value)


def known_orientation(value: object) -> int:
    """Return the value of the EXIF tag of the orientation; 1 if it is none of its values."""
    return value if isinstance(value, int) and value in _TURNS else 1


def turned(image: Image.Image, declared: int, left: int, how: Reading, notes: Notes) -> Image.Image:
    """Return the pixels of an image upright or as they are stored, as ``how.exif`` says.

    Parameters
    ----------
    image
        The pixels as Pillow loaded them.
    declared, left
        The EXIF orientation before and after loading, as :func:`loaded` returns them.
    how
        How the image is read.
    notes
        The list to which is appended what was done.
    """
    if declared == 1:
        return image
    notes.append(TURNED if how.exif == "turn" else NOT_TURNED)
    if how.exif == "turn":
        return image if left == 1 else image.transpose(_TURNS[left])
    return image if left != 1 else image.transpose(_BACK.get(declared, _TURNS[declared]))


def _opaque(image: Image.Image, background: tuple[int, int, int], notes: Notes) -> Image.Image:
    """Return an image in RGB, with its transparent pixels put on a background."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy all pixels
    clear = with_alpha(image)
    if clear.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    notes.append(COMPOSITED)
    return Image.alpha_composite(Image.new("RGBA", clear.size, background), clear).convert("RGB")


def with_alpha(image: Image.Image) -> Image.Image:
    """Convert an image to RGBA."""
    # Pillow converts premultiplied grey to plain grey only.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def is_animated(image: Image.Image) -> bool:
    """Whether a file has further frames; a damaged second frame does not count."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # decoders raise almost any error for damaged data
        return False
