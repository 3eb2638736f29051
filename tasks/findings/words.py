"""Findings in words: whole sentences about one class, and the names of places in an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.characters import shown

_BORDER = 0.2  # of a side: how far the border reaches into the image
_MOST = 0.75  # share of a region that lies in a part of the image which names it
_LARGE = 0.6  # of the image: a region that is not only in one place
# What a view suspects, by its name. The first word is that of the region where it has no place of its own.
VIEWS = {
    "places": "a fixed place",
    "off_object_own": "what lies beside the object, image by image",
    "off_object_mean": "what lies beside the object, on average",
}


def place_of(region: NDArray[np.bool_]) -> str:
    """Name the place of a region (H, W) in plain words, such as "the lower left corner"."""
    height, width = region.shape
    count = region.sum()
    if not count:
        return "no place"
    y, x = (np.arange(side) / max(side - 1, 1) for side in (height, width))
    rows, columns = np.nonzero(region)
    if count > _LARGE * region.size:
        return "most of the image"
    down = _third(y[rows], "upper", "lower")
    across = _third(x[columns], "left", "right")
    if down and across:
        return f"the {down} {across} corner"
    if down or across:
        return f"the {down or across} part"
    near = (np.minimum(y, 1 - y)[rows] < _BORDER) | (np.minimum(x, 1 - x)[columns] < _BORDER)
    if near.mean() > _MOST:
        return "the border"
    return "the centre" if near.mean() < 1 - _MOST else "several places"


def _third(values: NDArray[np.float64], low: str, high: str) -> str:
    """The word for the side on which most of the values in [0, 1] lie; empty if there is none."""
    if (values < 0.45).mean() > _MOST:
        return low
    return high if (values > 0.55).mean() > _MOST else ""


def class_told(number: int, name: str | None) -> str:
    """A class in words: its name and number, or its number alone."""
    return f"class {number}" if name is None or name == str(number) else f"{shown(name)} (class {number})"


def sentence(row: dict[str, Any], place: str, images: int, paired: bool = True) -> str:
    """Say what was found, or only suspected, about a class, in one sentence.

    Parameters
    ----------
    row
        A row of ``findings.parquet``.
    place
        Where it is, as :func:`place_of` says it.
    images
        How many images that count are taken for the class.
    paired
        Whether the control of the removal is elsewhere in the same images.
    """
    who = class_told(row["class"], row["class_name"])
    who = who[0].upper() + who[1:]
    if row["status"] in {"not tested", "on the object"}:
        return f"{who}: {place} is suspected ({row['reason']})."
    effects = (
        f"other content in the region costs {row['removal']:.1f} nats, "
        f"{'elsewhere' if paired else 'in images of other classes'} {row['removal_control']:.1f}; its own "
        f"content, pasted into images of other classes, turns {row['flips']:.0%} of them into this class, "
        f"content of random images {row['flips_control']:.0%}"
    )
    if row["status"] in {"finding", "candidate"}:
        seen = f"the maps of {row['images']:,} of {images:,} images taken for it point to {place}"
        return f"{who}: {seen}; in those that do so most, {effects}."
    return f"{who}: {place} was suspected and is not confirmed: {row['reason']} ({effects})."
