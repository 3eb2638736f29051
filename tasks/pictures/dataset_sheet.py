"""Draws some images of a dataset as a network sees them, with their boxes and masks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from storage.characters import shown
from storage.datasets.geometry import Box
from storage.datasets.masks import IGNORED, OBJECT
from storage.datasets.notes import Notes
from tasks.pictures.drawing import LINE, coloured, draw_boxes, label_below, sheet

ACROSS = 5  # images side by side
INCHES = 2.0  # width of one image
HIGHEST = 1.5  # height of a cell, at most, as a multiple of its width; a higher image is drawn smaller
CAPTION = int(LINE * INCHES / 1.5)  # characters of a line below an image
MASK_COLOURS = {OBJECT: (255, 0, 200, 90), IGNORED: (255, 220, 0, 140)}  # red, green, blue, opacity


@dataclass
class Seen:
    """An item that was looked at.

    Attributes
    ----------
    sample_id, label
        Its id, and its labels in words; empty if it has none.
    pixels
        (C, H, W) as the network gets them; None if the item cannot be used.
    size
        (width, height) of the image before it was resized and cropped.
    below
        What is written below the image, besides the id and the labels.
    boxes, mask
        In pixels of ``pixels``; the mask (H, W) has the values of :mod:`storage.datasets.masks`.
    covered
        Share of the picture that the object of the mask covers; None if there is no mask.
    notes
        What was done to the image, its boxes and its mask.
    problem
        Why it cannot be used; empty if it can.
    """

    sample_id: str
    label: str = ""
    pixels: NDArray[Any] | None = None
    size: tuple[int, int] = (0, 0)
    boxes: Sequence[Box] = ()
    below: str = ""
    mask: NDArray[np.uint8] | None = None
    covered: float | None = None
    notes: Notes = field(default_factory=list)
    problem: str = ""


def dataset_sheet(seen: Sequence[Seen], shown_bands: tuple[int, ...] = ()) -> Figure:
    """Draw items side by side, five in a row: boxes green, masks pink, and yellow where they do not count.

    In the place of an item that cannot be used stands why.
    """
    rows = -(-len(seen) // ACROSS)
    shapes = [item.pixels.shape[1:] for item in seen if item.pixels is not None] or [(1, 1)]
    cell = 1, 1 / min(HIGHEST, max(height / width for height, width in shapes))
    figure, axes = sheet(rows, min(ACROSS, len(seen)), cell, above=0, below=4, inches=INCHES)
    for axis in axes.flat[len(seen) :]:
        axis.set_axis_off()
    for axis, item in zip(axes.flat, seen, strict=False):
        if item.pixels is None:
            _draw_problem(axis, item)
            continue
        axis.imshow(coloured(item.pixels, shown_bands))
        if item.mask is not None:
            axis.imshow(_overlay(item.mask))
        draw_boxes(axis, item.boxes)
        label_below(axis, _caption([item.sample_id, item.label, item.below]), math=False)
    return figure


def _overlay(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 4): the colours of a mask, nothing where it is background."""
    colours = np.zeros((256, 4), np.uint8)
    for value, colour in MASK_COLOURS.items():
        colours[value] = colour
    return colours[mask]


def _draw_problem(axis: Any, item: Seen) -> None:
    axis.imshow(np.full((1, 1, 3), 235, np.uint8))
    told = "\n".join(textwrap.wrap(shown(item.problem), CAPTION)[:8])
    axis.text(
        0.5, 0.5, told, ha="center", va="center", fontsize=6.5, transform=axis.transAxes, parse_math=False
    )
    label_below(axis, _caption([item.sample_id, item.label, item.below]), math=False)


def _caption(lines: Sequence[str]) -> str:
    """The lines that are not empty; of a long one the end is kept, in which names differ."""
    told = [shown(line) for line in lines if line]
    return "\n".join(line if len(line) <= CAPTION else f"…{line[1 - CAPTION :]}" for line in told)
