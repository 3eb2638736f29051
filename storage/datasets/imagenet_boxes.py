"""The published boxes of ImageNet-1k: those of the WSOL evaluation, Kaggle's, and ImageNet's own XML files.

All of them name pixels from 0, and the last pixel belongs to the box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.datasets.annotations import lines_of, read_annotations
from storage.datasets.boxes import of_pixels
from storage.datasets.geometry import Box
from storage.datasets.imagenet_labels import KAGGLE, SYNSET, kaggle_rows, stem, synsets
from storage.places import files_under

_SIZES, _LABELS = "image_sizes.txt", "class_labels.txt"  # the files of the WSOL evaluation beside its boxes


@dataclass
class Located:
    """The boxes of one image.

    Attributes
    ----------
    boxes
        Boxes of objects of the image's class, in pixel edges.
    size
        (width, height) of the image in whose pixels they are; None if it is not published.
    others
        The number of boxes of objects of other classes.
    """

    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    others: int = 0


def boxes_of(path: Path, names: Sequence[str], labels: Sequence[int]) -> list[Located]:
    """Read the boxes of images.

    Parameters
    ----------
    path
        ``localization.txt`` of the WSOL evaluation, Kaggle's ``LOC_val_solution.csv``, or a folder with one
        XML file per image, at any depth.
    names
        The images' files.
    labels
        Their classes.

    Raises
    ------
    ValueError
        If ``path`` is none of these, or has no box of any image. The message is one line that names the key.
    """
    wanted = {stem(name): label for name, label in zip(names, labels, strict=True)}
    if path.is_dir():
        found = _of_annotations(path, wanted)
    elif path.is_file():
        lines = lines_of(path, "boxes")
        found = _of_kaggle(path, lines, wanted) if lines[:1] == [KAGGLE] else _of_wsol(path, lines, wanted)
    else:
        raise ValueError(f"dataset.boxes: there is no file or folder {path}")
    if names and not any(each.boxes for each in found.values()):
        raise ValueError(f"dataset.boxes: {path} has no box of any of the images, e.g. of {names[0]}")
    return [found.get(stem(name), Located()) for name in names]


def _of_annotations(path: Path, wanted: dict[str, int]) -> dict[str, Located]:
    """Read the XML files of the images that have one."""
    files = {stem(name): name for name in files_under(path) if name.lower().endswith(".xml")}
    present = {name: files[name] for name in wanted if name in files}
    found: dict[str, Located] = {}
    annotations = read_annotations(path, list(present.values()), "boxes", origin=0)
    for (name, file), annotation in zip(present.items(), annotations, strict=True):
        each = found[name] = Located(size=annotation.size)
        for one in annotation.objects:
            if not SYNSET.fullmatch(one.name):
                raise ValueError(f"dataset.boxes: {path / file}: the object {one.name[:80]!r} is no synset")
            if one.name == synsets()[wanted[name]]:
                each.boxes.append(one.box)
            else:
                each.others += 1
    return found


def _of_kaggle(path: Path, lines: Sequence[str], wanted: dict[str, int]) -> dict[str, Located]:
    """Read Kaggle's file, which does not say how large the images are."""
    found: dict[str, Located] = {}
    for name, words in kaggle_rows(lines):
        if name not in wanted:
            continue
        each = found.setdefault(name, Located())
        for start in range(0, len(words), 5):
            where = f"dataset.boxes: {path}: {name}"
            box = _box(words[start + 1 : start + 5], where)
            if words[start] == synsets()[wanted[name]]:
                each.boxes.append(box)
            else:
                each.others += 1
    return found


def _of_wsol(path: Path, lines: Sequence[str], wanted: dict[str, int]) -> dict[str, Located]:
    """Read the boxes of the WSOL evaluation, and the sizes and classes that lie beside them."""
    if not (path.parent / _SIZES).is_file():
        raise ValueError(
            f"dataset.boxes: there is no {_SIZES} beside {path}, which says in pixels of how large an image "
            "the boxes are; put it there, or give ImageNet's XML files"
        )
    found: dict[str, Located] = {}
    for number, line in enumerate(lines, start=1):
        file, *sides = line.split(",")
        if stem(file) in wanted:
            box = _box(sides, f"dataset.boxes: {path}, line {number}")
            found.setdefault(stem(file), Located()).boxes.append(box)
    for file, values in _beside(path.parent / _SIZES, 2):
        if stem(file) in found:
            found[stem(file)].size = values[0], values[1]
    unsized = next((name for name, each in found.items() if each.size is None), None)
    if unsized is not None:
        raise ValueError(f"dataset.boxes: {path.parent / _SIZES} has no size of {unsized}")
    if (path.parent / _LABELS).is_file():
        for file, (label,) in _beside(path.parent / _LABELS, 1):
            if wanted.get(stem(file), label) != label:
                raise ValueError(
                    f"dataset.boxes: {path.parent / _LABELS} says that {file} is of class {label}, and the "
                    f"dataset that it is of class {wanted[stem(file)]}"
                )
    return found


def _beside(path: Path, count: int) -> list[tuple[str, list[int]]]:
    """Read a file of the WSOL evaluation: in each line an image and so many whole numbers."""
    found = []
    for number, line in enumerate(lines_of(path, "boxes"), start=1):
        file, *values = line.split(",")
        if len(values) != count or not all(value.isdecimal() for value in values):
            raise ValueError(
                f"dataset.boxes: {path}, line {number} is not an image and {count} whole numbers"
            )
        found.append((file, [int(value) for value in values]))
    return found


def _box(sides: Sequence[str], where: str) -> Box:
    try:
        x0, y0, x1, y1 = map(_whole, sides)
    except ValueError as error:
        raise ValueError(f"{where}: {','.join(sides)[:80]} is not a box of four whole numbers") from error
    if x1 < x0 or y1 < y0:
        raise ValueError(f"{where}: {','.join(sides)} is not xmin,ymin,xmax,ymax")
    return of_pixels((x0, y0), (x1, y1), origin=0)


def _whole(text: str) -> int:
    """Return a whole number, which Python's int reads of 1_0 and of the digits of other scripts as well."""
    if not re.fullmatch(r"-?[0-9]{1,9}", text.strip()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)
