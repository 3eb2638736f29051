"""The file in which COCO describes the objects of images: instances_val2017.json and the like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.datasets.boxes import LARGEST, is_share
from storage.datasets.geometry import Box, has_area
from storage.datasets.masks import BACKGROUND, IGNORED, OBJECT
from storage.errors import one_line
from storage.files import UnreadableError

_MOST_PIXELS = 2**31  # of a side of an image
_FARTHEST = 1e6  # pixels; pycocotools takes memory for every pixel along a polygon
# The ids of COCO's 80 categories, and the names of the first and the last one.
_IDS = [number for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
_ENDS = ("person", "toothbrush")
_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Annotated:
    """One object of an image, or a crowd of them.

    Attributes
    ----------
    label
        Its class.
    box
        Its box in pixel edges.
    crowd
        Whether it is a crowd: its box holds several objects, and its mask is not exact.
    segmentation
        Polygons, or a run-length encoding; None if there is none.
    """

    label: int
    box: Box
    crowd: bool
    segmentation: Any


@dataclass
class Described:
    """One image of the file, of the size (width, height)."""

    file: str
    size: tuple[int, int]
    objects: list[Annotated] = field(default_factory=list)


@dataclass(frozen=True)
class CocoFile:
    """The images of the file in the order of their ids, and the names of the classes.

    Classes are numbered in the order of the category ids, which have gaps. ``published`` says that they are
    those of COCO itself, and not of another set in its format. ``lost`` is the number of annotations of
    images that the file does not list.
    """

    images: list[Described]
    classes: list[str]
    published: bool
    lost: int = 0


def read_coco(path: Path, choose: Any) -> CocoFile:
    """Read the images that ``choose`` takes from all of them, and their objects.

    Raises
    ------
    ValueError
        If it is not a file of instances; the message is one line that names the key.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not all(isinstance(found.get(part), list) for part in _PARTS):
            raise ValueError(f"it has no lists {', '.join(_PARTS)}")
        categories = sorted(found["categories"], key=lambda each: each["id"])
        numbers = {each["id"]: number for number, each in enumerate(categories)}
        if len(numbers) < len(categories):
            raise ValueError("two categories have one id")
        listed = {each["id"] for each in found["images"]}
        if len(listed) < len(found["images"]):
            raise ValueError("two images have one id, so that their objects cannot be told apart")
        chosen = choose(sorted(found["images"], key=lambda each: each["id"]))
        images = {each["id"]: _image(each) for each in chosen}
        for annotation in found["annotations"]:
            if annotation["image_id"] in images:
                images[annotation["image_id"]].objects.append(_annotated(annotation, numbers))
        _check_unit(list(images.values()))
        names = [str(each["name"]) for each in categories]
        published = list(numbers) == _IDS and (names[0], names[-1]) == _ENDS
        lost = sum(each["image_id"] not in listed for each in found["annotations"])
        return CocoFile(list(images.values()), names, published, lost)
    except KeyError as error:
        raise ValueError(
            f"dataset.path: {path} is not COCO's file of instances: an entry has no {error}; give "
            "instances_val2017.json or the like, not captions or key points"
        ) from error
    except RecursionError as error:
        raise ValueError(
            f"dataset.path: {path} is not COCO's file of instances: it is nested too deeply"
        ) from error
    except (ValueError, TypeError, OSError, AttributeError) as error:
        raise ValueError(
            f"dataset.path: {path} is not COCO's file of instances: {one_line(error)}"
        ) from error


def _image(given: Mapping[str, Any]) -> Described:
    size = given["width"], given["height"]
    if not all(type(side) is int and 0 < side < _MOST_PIXELS for side in size):
        raise ValueError(f"the image {given['file_name']} has the size {size[0]}x{size[1]}")
    return Described(str(given["file_name"]), size)


def _annotated(given: Mapping[str, Any], numbers: Mapping[Any, int]) -> Annotated:
    """Read one annotation; its box is x, y, width and height."""
    if given["category_id"] not in numbers:
        raise ValueError(f"the category {given['category_id']} of an annotation is not listed")
    sides = given["bbox"]
    if not isinstance(sides, list) or len(sides) != 4 or not all(map(_is_side, sides)) or min(sides[2:]) < 0:
        raise ValueError(f"the box {str(sides)[:80]} is not x, y, width and height")
    x, y, width, height = map(float, sides)
    box = x, y, x + width, y + height
    crowd = given.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {crowd!r:.80} for an annotation; it is 0 or 1")
    return Annotated(numbers[given["category_id"]], box, bool(crowd), given.get("segmentation") or None)


def _is_side(value: Any) -> bool:
    """Whether a value is a number that a side of a box may be; True is none."""
    return type(value) in {int, float} and abs(value) <= LARGEST


def _check_unit(images: Sequence[Described]) -> None:
    """Raise ValueError if all boxes are shares of the width and the height of their images."""
    each = [(image.file, one.box) for image in images for one in image.objects if has_area(one.box)]
    if each and all(is_share(box) for _, box in each):
        file, (x0, y0, x1, y1) = each[0]
        raise ValueError(
            f"all boxes lie within 0..1, or little beyond, e.g. {x0:g},{y0:g},{x1 - x0:g},{y1 - y0:g} for "
            f"{file}; write them in pixels of their images"
        )


def masks_of(image: Described, labels: Sequence[int]) -> NDArray[np.uint8]:
    """Return the mask of each label of an image, (labels, H, W): the union of its objects.

    A crowd is ignored where none of the objects of its class is.

    Raises
    ------
    UnreadableError
        If an object has no segmentation, or one that cannot be read; the message is one line.
    """
    width, height = image.size
    found = np.full((len(labels), height, width), BACKGROUND, np.uint8)
    # Crowds first, so that objects are drawn over them.
    for each in sorted(image.objects, key=lambda each: not each.crowd):
        plane = found[labels.index(each.label)]
        plane[_pixels(each.segmentation, image.size)] = IGNORED if each.crowd else OBJECT
    return found


def _pixels(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels (H, W) belong to an object, as pycocotools draws it.

    pycocotools takes a polygon of four numbers for a box, and leaves pixels behind the last run undefined:
    both are errors here.
    """
    from pycocotools import mask  # imported late, because it belongs to an extra

    width, height = size
    if segmentation is None:
        raise UnreadableError("its mask: an object has no segmentation")
    try:
        if isinstance(segmentation, Mapping):
            rows, columns = segmentation["size"]
            if (columns, rows) != size:
                raise ValueError(f"an object is in {columns}x{rows} pixels, of {width}x{height}")
            runs = _runs(segmentation["counts"])
            if min(runs, default=-1) < 0 or sum(runs) != width * height:
                raise ValueError(f"the runs of an object are not {width * height} pixels")
            return np.asarray(
                mask.decode(mask.frPyObjects({"size": [rows, columns], "counts": runs}, rows, columns)), bool
            )
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or not all(abs(side) <= _FARTHEST for side in polygon):
                raise ValueError(f"an object has a polygon that is none: {str(polygon)[:80]}")
        return np.asarray(mask.decode(mask.merge(mask.frPyObjects(segmentation, height, width))), bool)
    except Exception as error:  # what JSON holds may be anything
        told = (
            one_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {one_line(error)}"
        )
        raise UnreadableError(f"its mask: {told}") from error


def _runs(counts: list[int] | str) -> list[int]:
    """Return the lengths of runs of zeros and ones, from a list or from COCO's compressed text.

    A character holds 5 bits of a number, lowest first, and whether the number goes on. From the fourth number
    on, they are differences from the number before the last.
    """
    if isinstance(counts, list):
        return counts
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
