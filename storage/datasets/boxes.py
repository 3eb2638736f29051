"""Boxes of objects: how they are written in a listing, and where they lie in their image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from storage.datasets.geometry import Box, has_area
from storage.datasets.notes import BOX_CLIPPED, BOX_EMPTY, BOX_OUTSIDE, Notes

BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
# Python's float also reads 1_0 and the digits of other scripts.
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
LARGEST = 1e9  # no image has more pixels on a side
_ROUNDED = 0.01  # how far relative boxes may reach beyond 0..1, by rounding
_BEYOND = 0.5  # and by a detector that does not clip them: no box of whole pixels is so small and so placed


def read_box(row: Mapping[str, str]) -> Box | None:
    """Return the box of a row; None if there are no box columns or if all four are empty.

    Boxes without area are allowed, because listings with inclusive coordinates have some. They are counted
    later.

    Raises
    ------
    ValueError
        If the cells are not four finite numbers in order; the message is one line.
    """
    if BOX_COLUMNS[0] not in row:
        return None
    cells = [row.get(name, "") for name in BOX_COLUMNS]
    if not any(cells):
        return None
    written = ",".join(cells)
    if not all(_NUMBER.fullmatch(cell) for cell in cells):
        raise ValueError(f"the box {written} is not four numbers")
    xmin, ymin, xmax, ymax = (float(cell) for cell in cells)
    if not all(abs(side) <= LARGEST for side in (xmin, ymin, xmax, ymax)) or xmax < xmin or ymax < ymin:
        raise ValueError(
            f"the box {written} is not xmin,ymin,xmax,ymax; the numbers must be finite, with xmin <= "
            "xmax and ymin <= ymax"
        )
    return xmin, ymin, xmax, ymax


def number_in(text: str) -> float:
    """Return the number that a text is; raise ValueError if it is none in the digits 0 to 9."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text.strip()[:80]!r} is no number")
    return float(text)


def check_unit(
    path: Path | str,
    boxes: Iterable[tuple[str, Sequence[Box]]],
    unit: Literal["pixels", "relative"] | None,
    key: str = "dataset.boxes",
) -> None:
    """Check that the boxes of a listing are in the unit that the job says, or else clearly in pixels.

    Parameters
    ----------
    path
        The listing, for the message.
    boxes
        The images of the listing with their boxes.
    unit
        What the job says. None: pixels, unless a box lies within 0..1 or little beyond.
    key
        The job's key that says it.

    Raises
    ------
    ValueError
        If the unit is another one or is unclear; the message is one line that names the key.
    """
    if unit == "pixels":
        return
    each = [(file, box) for file, its in boxes for box in its]
    if unit == "relative":
        for file, box in each:
            if not is_share(box, _ROUNDED):
                raise ValueError(
                    f'{key}: "relative" needs boxes within 0..1, and {path} has {_text(box)} for '
                    f'{file}; set "pixels" or divide the boxes by the size of their image'
                )
        return
    small = [is_share(box) for _, box in each]
    # A box without area at 0 may stand for "no object" in a listing of either unit.
    sized = [is_small for is_small, (_, box) in zip(small, each, strict=True) if has_area(box)]
    if not any(sized):
        return
    file, box = next(one for one, is_small in zip(each, small, strict=True) if is_small and has_area(one[1]))
    told = "all boxes lie" if all(sized) else f"{sum(sized)} of {len(sized)} boxes lie"
    raise ValueError(
        f"{key}: {told} within 0..1, or little beyond, in {path}, e.g. {_text(box)} for {file}; set "
        '"relative" if boxes are shares of the width and the height, or "pixels" if they are so small'
    )


def placed(boxes: Sequence[Box], size: tuple[int, int], relative: bool, notes: Notes) -> list[Box]:
    """Return the boxes that lie in an image, in its pixels and clipped to it.

    Parameters
    ----------
    boxes
        Boxes as they are listed.
    size
        (width, height) of the image in pixels, after it was turned.
    relative
        Whether the boxes are in shares of the width and the height.
    notes
        A list to which is appended which boxes were clipped, or left out because they lie outside or have no
        area.
    """
    width, height = size
    scale = (width, height) if relative else (1, 1)
    kept = []
    for box in boxes:
        x0, y0, x1, y1 = (side * scale[place % 2] for place, side in enumerate(box))
        if not has_area(box):
            notes.append(f"{BOX_EMPTY}: {_text(box)}")
        elif x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            notes.append(f"{BOX_OUTSIDE}: {_text(box)} in {width}x{height}")
        else:
            inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
            if inside != (x0, y0, x1, y1):
                notes.append(f"{BOX_CLIPPED}: {_text(box)} in {width}x{height}")
            kept.append(inside)
    return kept


def of_pixels(first: tuple[float, float], last: tuple[float, float], origin: int) -> Box:
    """Return the box around pixels that are named by their own numbers, as annotations name them.

    Parameters
    ----------
    first, last
        (column, row) of the first and the last pixel that belong to the object.
    origin
        The number of the first column and row of an image: 1 in PASCAL VOC, 0 in ImageNet.
    """
    return first[0] - origin, first[1] - origin, last[0] - origin + 1, last[1] - origin + 1


def is_share(box: Box, beyond: float = _BEYOND) -> bool:
    """Whether a box lies within 0..1, where shares of the width and the height lie, or little beyond."""
    return all(-beyond <= side <= 1 + beyond for side in box)


def _text(box: Box) -> str:
    """Return a box as it may be written in a listing."""
    return ",".join(f"{side:g}" for side in box)
