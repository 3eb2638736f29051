"""What the items of map-style datasets are: the forms that they may have, their facts, images and masks.

An item is an image, a pair of an image and a label, or a dict with the key ``image`` and any of ``id``,
``label``, ``labels``, ``boxes`` and ``mask``. A value may be None.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.datasets.bands import of_values
from storage.datasets.boxes import is_share
from storage.datasets.geometry import Box, has_area
from storage.datasets.labels import LARGEST
from storage.datasets.masks import mask_of
from storage.datasets.notes import MASK_VALUES, Notes, kind_of
from storage.datasets.reading import Reading
from storage.errors import LONGEST, one_line
from storage.files import UnreadableError

_PARTS = ("id", "label", "labels", "boxes", "mask")  # what a dict may say besides the image
# Keys that stand for one of these elsewhere, and would be left unread.
_MEANT = {"img": "image", "images": "image", "target": "label", "targets": "labels", "masks": "mask"}
_MEANT |= dict.fromkeys(("box", "bbox", "bboxes"), "boxes")
_SEVERAL = "has a mask with several values besides 0; give one of 0 and 1"


@dataclass(frozen=True)
class Item:
    """One item, as its dataset gave it.

    Attributes
    ----------
    image, mask
        As they were given.
    form
        Which of the parts the item has.
    name, label, labels, boxes
        Its id, class indices, and boxes; None and empty where it has none.
    """

    image: Any
    form: frozenset[str]
    name: str | None = None
    label: int | None = None
    labels: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: Any = None


def parsed(given: Any, classes: Sequence[str]) -> Item:
    """Read what an item says, without its image and its mask.

    Raises
    ------
    UnreadableError
        If it has none of the three forms; the message is the reason in one line.
    """
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise UnreadableError(
                f"is a {type(given).__name__} of {len(given)}; an item is an image, (image, label), or a "
                "dict with the key image"
            )
        given = {"image": given[0], "label": given[1]}
    elif not isinstance(given, Mapping):
        given = {"image": given}
    for wrong, right in _MEANT.items():
        if wrong in given and right not in given:
            raise UnreadableError(f"has the key {wrong!r}; call it {right!r}, or leave it out")
    if "image" not in given:
        raise UnreadableError(f"is a dict without the key image; it has {', '.join(map(str, given))}")
    if "label" in given and "labels" in given:
        raise UnreadableError("has both label and labels; give label, or labels where there may be several")
    return Item(
        given["image"],
        frozenset(part for part in _PARTS if part in given),
        name_of(given.get("id")),
        label_of(given.get("label"), classes),
        labels_of(given.get("labels"), classes),
        boxes_of(given.get("boxes")),
        given.get("mask"),
    )


def name_of(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    try:
        return str(operator.index(value))
    except TypeError:
        raise UnreadableError(f"has the id {value!r:.50}; an id is a text or a whole number") from None


def label_of(value: Any, classes: Sequence[str]) -> int | None:
    """Return a class index; None for None, and for -1, which sets without labels have."""
    if value is None:
        return None
    if isinstance(value, str):
        if value not in classes:
            raise UnreadableError(
                f"has the label {value[:50]!r}; give the dataset a list classes with all names, or return "
                "class indices"
            )
        return list(classes).index(value)
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")) in {"bool", "torch.bool"}
    if getattr(value, "ndim", 0) or truth:
        raise UnreadableError(f"has the label {_shown(value)}; a label is one class index")
    try:
        index = operator.index(value)
    except TypeError:
        raise UnreadableError(f"has the label {_shown(value)}; a label is one class index") from None
    most = len(classes) - 1 if classes else LARGEST
    if not -1 <= index <= most:
        raise UnreadableError(f"has the label {index}, and labels reach from 0 to {most}")
    return None if index == -1 else index


def labels_of(values: Any, classes: Sequence[str]) -> tuple[int, ...]:
    if values is None:
        return ()
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise UnreadableError(f"has the labels {_shown(values)}; labels are a list of class indices")
    found = tuple(label_of(value, classes) for value in values)
    if None in found or len(set(found)) < len(found):
        raise UnreadableError(f"has the labels {_shown(values)}; they are class indices, each written once")
    if found == (1, 0):
        raise UnreadableError(
            f"has the labels {_shown(values)}, which may say of each of two classes whether it is there; "
            "give class indices, of these two [0, 1]"
        )
    return tuple(label for label in found if label is not None)


def boxes_of(values: Any) -> tuple[Box, ...]:
    if values is None or len(values) == 0:
        return ()
    given = np.asarray(_on_this_machine(values))
    if given.dtype.kind not in "iuf":
        raise UnreadableError(f"has the boxes {_shown(values)}, which are no numbers")
    boxes = given.astype(np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UnreadableError(f"has boxes of the shape {boxes.shape}; they are (boxes, 4)")
    found = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]
    for box in found:
        told = ",".join(f"{side:g}" for side in box)
        if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise UnreadableError(f"has the box {told}, which is not xmin,ymin,xmax,ymax")
        if has_area(box) and is_share(box):
            raise UnreadableError(f"has the box {told} within 0..1; boxes are in pixels of the image")
    return tuple(found)


def _shown(value: Any) -> str:
    return f"{' '.join(repr(value).split())[:50]} ({type(value).__name__})"


# Images and masks


def _on_this_machine(values: Any) -> Any:
    """Return a tensor as an array; PyTorch is not imported for those that have none."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def image_of(item: Item, how: Reading, notes: Notes) -> Image.Image | NDArray[Any]:
    """Return the image of an item, as :meth:`storage.datasets.dataset.Dataset.load` gives it."""
    given = item.image if isinstance(item.image, Image.Image) else _image_values(item.image)
    try:
        return of_values(given, how, notes)
    except OSError as error:  # Pillow reads the file of an image only now
        raise UnreadableError(f"has an image that cannot be read: {one_line(error, LONGEST)}") from error


def _image_values(given: Any) -> NDArray[Any]:
    """Return the image of an item as an array, whose type and range say what is black and white."""
    values = np.asarray(_on_this_machine(given))
    if values.dtype.kind == "f" and np.isfinite(values).all():
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if low < 0 or high > 1:
            raise UnreadableError(
                f"has an image with values from {low:g} to {high:g}; floats lie within 0..1, and the model "
                "normalises them itself"
            )
    elif values.dtype.kind != "f" and values.dtype not in (np.uint8, np.uint16):
        raise UnreadableError(
            f"has an image of type {type(given).__name__} with values of type {values.dtype}; it is a PIL "
            "image, or an array or tensor of uint8, uint16 or floats within 0..1"
        )
    return values


def mask_image(item: Item, notes: Notes) -> Image.Image | None:
    """Return the mask of an item with the values of :mod:`storage.datasets.masks`; 0 is the background."""
    given = item.mask
    if given is None:
        return None
    if not isinstance(given, Image.Image):
        values = np.asarray(_on_this_machine(given))
        values = values[0] if values.ndim == 3 and len(values) == 1 else values
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise UnreadableError(
                f"has a mask of the shape {values.shape} and type {values.dtype}; it is (H, W) of numbers"
            )
        kinds = np.unique(values)
        if len(kinds[kinds != 0]) > 1 or not np.isfinite(values).all():
            raise UnreadableError(_SEVERAL)
        given = Image.fromarray((values != 0).astype(np.uint8))
    own: Notes = []
    made = mask_of(given, Reading(exif="ignore"), own)
    if MASK_VALUES in map(kind_of, own):
        raise UnreadableError(_SEVERAL)
    notes += own
    return made
