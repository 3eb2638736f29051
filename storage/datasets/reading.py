"""How the files of a dataset become images and masks, as the job says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        65535 for 16 bits; files with 32 bits are not read.
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
    relative_boxes: bool = False
    mask_values: tuple[int, ...] | None = None
    mask_ignore: tuple[int, ...] = ()


DEFAULT = Reading()
