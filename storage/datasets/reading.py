"""How the files of a dataset become images and masks, as the job says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stored = Literal["uint8", "uint16", "float32"]
Window = tuple[float, float] | Literal["file", "full"]  # the values of DICOM files that are shown
ALIKE = frozenset({1, 3})  # channels for which a grey image can stand, or three equal bands


@dataclass(frozen=True)
class Bands:
    """What the values of an image become.

    Attributes
    ----------
    channels
        Number of bands that the model takes.
    stored
        NumPy type of the values; None for as many bits as the file has.
    """

    channels: int = 3
    stored: Stored | None = "uint8"

    @classmethod
    def of(cls, channels: int, depth: int | None = None) -> Bands:
        """The bands for a model of ``channels``; ``depth`` is the job's ``dataset.depth``."""
        if depth is None:
            return cls(channels, "uint8" if channels == 3 else None)
        return cls(channels, "uint8" if depth == 8 else "uint16" if depth == 16 else "float32")


RGB = Bands()  # what every network of colours sees: three bands of 8 bits


@dataclass(frozen=True)
class Reading:
    """The choices that a file format leaves open.

    Attributes
    ----------
    exif
        "turn" turns an image as its EXIF orientation says; "ignore" takes the pixels as they are stored.
    background
        Colour (red, green, blue) behind transparent pixels, each 0 to 255.
    limits
        The values that become black and white, where a file has more than 8 bits per value. None: 0 and
        65535 for 16 bits; files with other numbers are not read, apart from floats within 0 and 1 in arrays
        and in files that are read as bands.
    bands
        How many bands an image has, and of what type its values are.
    window
        Which values are black and white in DICOM files; see :func:`storage.datasets.dicom.read_dicom`.
    relative_boxes
        Whether boxes are in shares of the image's width and height, and not in pixels.
    mask_values
        Values of a mask that are the object; None: every value that is neither 0 nor ignored.
    mask_ignore
        Values of a mask that are neither object nor background.
    """

    exif: Literal["turn", "ignore"] = "turn"
    background: tuple[int, int, int] = (255, 255, 255)
    limits: tuple[float, float] | None = None
    bands: Bands = RGB
    window: Window = "file"
    relative_boxes: bool = False
    mask_values: tuple[int, ...] | None = None
    mask_ignore: tuple[int, ...] = ()


DEFAULT = Reading()
