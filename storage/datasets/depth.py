"""Images with more than 8 bits per value: their scale, and how much of it they use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.datasets.notes import CUT_VALUES, DARK, DEEP, Notes
from storage.datasets.reading import Stored
from storage.files import UnreadableError

_FULL = (0.0, 65535.0)
_TOP = {"uint8": 255, "uint16": 65535, "float32": 1}  # the value of each type that is 1 for the network
_DARK = 1 << 14  # a quarter of 16 bits, which values of 14 bits or less stay below


def has_deep_colours(image: Image.Image) -> bool:
    """Whether a file has 16 bits per colour, of which Pillow reads the 8 high ones.

    This is known only before the pixels are loaded.
    """
    tiles = getattr(image, "tile", ())
    return image.mode in {"RGB", "RGBA", "LA"} and any(";16" in str(tile.args) for tile in tiles)


def grey_factor(image: Image.Image) -> float:
    """Return by what Pillow multiplies grey values of less than 8 bits, or of a file with its own range.

    This is known only before the pixels are loaded. The factor is 1 for most files, 85 and 17 for 2 and 4
    bits, and 255 or 65535 divided by the largest value that a PGM file states.
    """
    for tile in getattr(image, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name in {"ppm", "ppm_plain"} and image.mode in {"L", "I"}:
            return (255 if image.mode == "L" else _FULL[1]) / float(arguments[1])
        layout = str(arguments[0] if arguments else None)
        if layout.startswith(("L;2", "L;4")):
            return 85 if layout.startswith("L;2") else 17
    return 1


def to_eight_bits(
    image: Image.Image, deep_colours: bool, limits: tuple[float, float] | None, notes: Notes
) -> Image.Image:
    """Return an image with 8 bits per value; one that has no more is returned as it is.

    Whole numbers from ``low`` to ``high`` are divided into 256 steps of one size: the 8 high bits of 16.
    Floats are scaled to 0 to 255 and rounded.

    Parameters
    ----------
    image
        The image.
    deep_colours
        Whether its file has 16 bits per colour; see :func:`has_deep_colours`.
    limits
        ``low`` and ``high``; None takes 0 and 65535 for 16 bits.
    notes
        A list to which is appended that the image is deep, or that it leaves most of its range unused.

    Raises
    ------
    UnreadableError
        If the range of the values is unknown, if a value is not finite, or if ``limits`` are given for
        colours of 16 bits.
    """
    if deep_colours:
        if isinstance(image.info.get("transparency"), tuple):  # Pillow compares it with the 8 high bits
            raise UnreadableError("has 16 bits per colour and a transparent colour; convert it to 8 bits")
        if limits is not None:
            raise UnreadableError(
                f"dataset.range is for grey files, and this one has 16 bits per colour (mode {image.mode}); "
                "convert it to 8 bits"
            )
        bands = image.getchannel(0) if image.mode == "LA" else image.convert("RGB")
        _note_depth(int(np.asarray(bands).max(initial=0)) << 8, notes)
        return image
    stated = states_range(image)
    if stated or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        return _with_transparency(image, values, scaled(values, None if stated else limits, notes, "uint8"))
    if image.mode not in {"I", "F"}:
        return image
    if limits is None:
        raise UnreadableError(
            f"32-bit images (mode {image.mode}) have no stated range; set dataset.range or convert to 8 bit"
        )
    return Image.fromarray(scaled(np.asarray(image), limits, notes, "uint8"))


def states_range(image: Image.Image) -> bool:
    """Whether a file states the range of its values, from which Pillow scales them to 16 bits."""
    return image.format == "PPM" and image.mode == "I"


def _note_depth(largest: int, notes: Notes) -> None:
    """Note that an image has 16 bits, and whether it uses less than a quarter of their range."""
    notes.append(DEEP)
    if largest < _DARK:
        notes.append(f"{DARK}: largest value {largest}")


def own_depth(kind: np.dtype) -> Stored:
    """The type in which values of a NumPy type keep all their bits, as far as one of the three can."""
    if kind == np.uint8:
        return "uint8"
    return "uint16" if kind.kind in "ui" and kind.itemsize == 2 else "float32"


def scaled(values: NDArray, limits: tuple[float, float] | None, notes: Notes, stored: Stored) -> NDArray:
    """Scale the values of an image from their range to that of the type ``stored``.

    Parameters
    ----------
    values
        Numbers of any type and shape.
    limits
        The values that are black and white, which do not matter for uint8; None takes 0 and 65535 for uint16,
        and 0 and 1 for floats.
    notes
        A list to which is appended that the image is deep, leaves most of its range unused, or was cut.
    stored
        uint8 and uint16 have 0 for black and their largest value for white; float32 has 0 and 1.

    Raises
    ------
    UnreadableError
        If the values are no numbers or not finite, or if their range is not known.
    """
    low, high = _range_of(values, limits, notes)
    if values.dtype.name == stored and (low, high) == (0, _TOP[stored]):
        return values.astype(stored, copy=False)  # in the byte order of this machine
    if stored == "uint8":
        return _to_steps(values, (low, high), notes)
    _note_cut(values, (low, high), notes)
    shares = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    return np.rint(shares * _TOP[stored]).astype(stored) if stored == "uint16" else shares.astype(stored)


def _range_of(values: NDArray, limits: tuple[float, float] | None, notes: Notes) -> tuple[float, float]:
    """Return the values that are black and white."""
    kind = values.dtype
    if kind.kind not in "uif":
        raise UnreadableError(f"has values of type {kind}, which are no numbers of an image")
    if not np.isfinite(values).all():
        raise UnreadableError("has values that are not finite")
    if kind.name == "uint8":
        return 0, 255
    if limits is not None:
        return limits
    if kind.name == "uint16":
        _note_depth(int(values.max(initial=0)), notes)
        return _FULL
    low, high = values.min(), values.max()
    if kind.kind == "f" and low >= 0 and high <= 1:
        return 0, 1
    raise UnreadableError(
        f"has values of type {kind} from {low:g} to {high:g} and no stated range; set dataset.range"
    )


def _note_cut(values: NDArray, limits: tuple[float, float], notes: Notes) -> None:
    """Note that values lie outside of the limits."""
    # As floats, since a limit may be no number of the values' type.
    least, most = float(values.min()), float(values.max())
    if least < limits[0] or most > limits[1]:
        notes.append(f"{CUT_VALUES}: {least:g} to {most:g}")


def _to_steps(values: NDArray, limits: tuple[float, float], notes: Notes) -> NDArray[np.uint8]:
    """Scale values to 0..255 and cut those outside the limits."""
    low, high = limits
    _note_cut(values, limits, notes)
    if values.dtype.kind in "iu" and low == int(low) and high == int(high):
        kind = np.iinfo(values.dtype)
        # What lies outside is cut first, since its product may be too large for 64 bits.
        least, most = (min(max(int(x), int(kind.min)), int(kind.max)) for x in (low, high + 1))
        values = values.clip(least, most)
        # The top of the range belongs to the last step.
        steps = (values.astype(np.int64) - int(low)) * 256 // (int(high) - int(low) + 1)
    else:
        steps = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    return steps.clip(0, 255).astype(np.uint8)


def _with_transparency(image: Image.Image, values: NDArray, grey: NDArray[np.uint8]) -> Image.Image:
    """Make a grey image; the value that the file calls transparent is transparent."""
    made = Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        made.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return made
