"""TIFF files of any number of bands and bits, as arrays (bands, H, W)."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.datasets.arrays import DEFLATE
from storage.datasets.decoding import LARGEST, check_pixels, known_orientation
from storage.datasets.notes import FIRST_FRAME, Notes
from storage.datasets.reading import ALIKE
from storage.errors import one_line
from storage.files import UnreadableError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what TIFF and BigTIFF files begin with
_PLAIN = frozenset({1, 2})  # photometric interpretations whose values are the bands: grey and RGB
_SIGNED = 2  # the sample format of whole numbers with a sign
_BANDS = "SCQ"  # the axes that are bands, whatever their length
# By compression, what decompresses step by step, and the most bytes that one byte becomes.
_STEPWISE: dict[int, tuple[Callable[[], Any], float]] = {
    **dict.fromkeys((8, 32946, 50013), (zlib.decompressobj, DEFLATE)),
    34925: (lzma.LZMADecompressor, math.inf),
}
_ROOM = 64 << 20  # bytes that a strip or tile of any file may become, even where the image is smaller


def read_tiff(data: bytes, channels: int, notes: Notes) -> tuple[NDArray[Any], int] | None:
    """Read the first image of a TIFF file.

    Parameters
    ----------
    data
        The contents of the file.
    channels
        Number of bands that the model takes, which says what the pages of a file are.
    notes
        A list to which is appended that other frames are not read.

    Returns
    -------
    NDArray, int
        The values as they are in the file (bands, H, W), and the EXIF orientation. None for a file that is to
        be read by Pillow: of few bands of 8 bits, or with a compression that is unknown here.

    Raises
    ------
    UnreadableError
        If the file cannot be read; the message is the reason in one line.
    """
    try:
        return _of_tiff(data, channels, notes)
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # damaged files raise almost any error
        raise UnreadableError(one_line(error)) from error


def _of_tiff(data: bytes, channels: int, notes: Notes) -> tuple[NDArray[Any], int] | None:
    from tifffile import COMPRESSION, TiffFile  # imported late, because most images are no TIFF files

    with TiffFile(BytesIO(data)) as file:
        page: Any = file.pages[0]
        tags, series = page.tags, file.series[0]
        kind, samples, depth = (int(np.max(_tag(tags, code, 1))) for code in (262, 277, 258))
        alpha = bool({1, 2} & set(np.atleast_1d(_tag(tags, 338, 0)).tolist()))
        signed = _SIGNED in np.atleast_1d(_tag(tags, 339, 1))  # Pillow would read -1 as 255
        known = kind not in _PLAIN or samples in ALIKE or (alpha and samples != channels)
        alone = len(file.pages) == 1 and known and not signed
        if alone and (depth <= 8 or not _decodes(page)):
            return None
        if kind not in _PLAIN:
            raise UnreadableError(
                f"is a TIFF file with the photometric interpretation {kind}, whose values are no brightness; "
                "write it as grey or RGB"
            )
        if depth < 8:
            raise UnreadableError(f"is a TIFF file with {depth} bits per value; write it with 8")
        if not _decodes(page):
            raise UnreadableError(
                f"is a TIFF file compressed by {COMPRESSION(page.compression).name}, which is not read "
                "here; write it with deflate, or without compression"
            )
        claimed = math.prod(series.shape) * series.dtype.itemsize
        if claimed > LARGEST:
            raise UnreadableError(f"claims {series.dtype} {series.shape}; at most {LARGEST} bytes are read")
        sides = dict(zip(series.axes, series.shape, strict=True))
        check_pixels(sides.get("Y", 0), sides.get("X", 0))
        _check_parts(data, series, max(_ROOM, claimed))
        values, axes = series.asarray(), series.axes
        orientation = known_orientation(_tag(tags, 274, 1))
    return _bands_first(values, axes, channels, notes), orientation


def _decodes(page: Any) -> bool:
    """Whether the library has what it needs to read the values of a page of a TIFF file."""
    from tifffile import TIFF

    try:
        decode, _ = TIFF.DECOMPRESSORS[page.compression], TIFF.UNPREDICTORS[page.predictor]
        decode(b"")
    except (KeyError, ImportError):  # a decoder may lack its own library, which it says when it is called
        return False
    except Exception:  # no bytes are no compressed data, which says nothing about files
        pass
    return True


def _check_parts(data: bytes, series: Any, most: int) -> None:
    """Raise UnreadableError if a compressed strip or tile becomes more than ``most`` bytes.

    The library decompresses each as a whole, before it drops what the image has no place for.
    """
    if series.keyframe.compression not in _STEPWISE:
        return
    stepwise, factor = _STEPWISE[series.keyframe.compression]
    for page in filter(None, series.pages):
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=False):
            if size * factor <= most:
                continue
            if len(stepwise().decompress(data[start : start + size], most + 1)) > most:
                raise UnreadableError(
                    f"has a strip or tile that becomes more than {most} bytes, for which it has no place"
                )


def _tag(tags: Any, code: int, default: Any) -> Any:
    """The value of a tag of a TIFF file; ``default`` if it has none."""
    return default if tags.get(code) is None else tags[code].value


def _bands_first(values: NDArray[Any], axes: str, channels: int, notes: Notes) -> NDArray[Any]:
    """Return the bands (bands, H, W) of a TIFF file; of several frames the first one is taken."""
    frames = [axis for axis in axes if axis not in "YX"]
    while frames:
        axis = frames[0]
        place = axes.index(axis)
        length = values.shape[place]
        # Pages that say nothing about themselves are the bands if there are as many.
        if (
            length != 1
            and len(frames) == 1
            and (axis in _BANDS or length == channels or channels not in ALIKE)
        ):
            break
        if length != 1:
            notes.append(FIRST_FRAME)
        values, axes = values.take(0, place), axes.replace(axis, "", 1)
        frames = frames[1:]
    order = [axes.index(axis) for axis in [*frames, "Y", "X"]]
    values = values.transpose(order)
    return values if frames else values[None]
