"""The files that are published beside images: lists, and the XML files of PASCAL VOC and ImageNet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from storage.datasets.boxes import is_share, number_in, of_pixels
from storage.datasets.geometry import Box
from storage.errors import one_line
from storage.places import texts_of


@dataclass(frozen=True)
class Annotated:
    """One object of an image.

    Attributes
    ----------
    name
        Its class, as the file names it.
    box
        Its box in pixel edges.
    difficult
        Whether the file marks it as difficult, which evaluations of PASCAL VOC leave out.
    """

    name: str
    box: Box
    difficult: bool = False


@dataclass(frozen=True)
class Annotation:
    """The objects of an image, and the (width, height) of the image in whose pixels they are.

    The size is None where the file states none.
    """

    size: tuple[int, int] | None
    objects: tuple[Annotated, ...]


def text_of(path: Path, key: str) -> str:
    """Read a text file; a ValueError begins with the job's key ``dataset.KEY`` that names the file."""
    try:
        return texts_of(path.parent, [path.name])[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"dataset.{key}: {path} cannot be read as text: {one_line(error)}") from error


def lines_of(path: Path, key: str) -> list[str]:
    """Read the lines of a text file as :func:`text_of` does, without empty ones and blanks at their ends."""
    return [line.strip() for line in text_of(path, key).splitlines() if line.strip()]


def read_annotations(folder: Path, files: Sequence[str], key: str, origin: int) -> Iterator[Annotation]:
    """Read the annotation files of a folder; yield what each says.

    Parameters
    ----------
    folder, files
        The folder, and the paths of the files from there.
    key
        The key of the job's table ``[dataset]`` that messages name.
    origin
        As for :func:`read_annotation`.

    Raises
    ------
    ValueError
        If a file cannot be read or is no annotation file; the message is one line.
    """
    try:
        texts = texts_of(folder, files)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"dataset.{key}: a file of {folder} cannot be read: {one_line(error)}") from error
    for file, text in zip(files, texts, strict=True):
        try:
            yield read_annotation(text, origin)
        except ValueError as error:
            raise ValueError(f"dataset.{key}: {folder / file} {error}") from error


def read_annotation(text: str, origin: int) -> Annotation:
    """Read the text of an annotation file.

    Parameters
    ----------
    text
        The file's text.
    origin
        The number that the first column and row of an image has: 1 in PASCAL VOC, 0 in ImageNet. The last
        pixel of a box belongs to it.

    Raises
    ------
    ValueError
        If it is not such a file; the message is one line.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"is not XML: {one_line(error)}") from error
    if root.tag != "annotation":
        raise ValueError(f"begins with <{root.tag}>, not with <annotation>")
    sides = [root.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    try:
        width, height = (int(number_in(side)) for side in sides)
        objects = tuple(_object(each, origin) for each in root.findall("object"))
    except ValueError as error:
        raise ValueError(f"is not an annotation: {one_line(error)}") from error
    return Annotation((width, height) if width > 0 and height > 0 else None, objects)


def _object(element: ElementTree.Element, origin: int) -> Annotated:
    """Read one object; raise ValueError if it has no name or no box."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    sides = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in sides:
        raise ValueError(f"the object {name} has no box")
    x0, y0, x1, y1 = (number_in(side or "") for side in sides)
    told = f"the box {x0:g},{y0:g},{x1:g},{y1:g} of {name}"
    if not (x0 <= x1 and y0 <= y1 and all(map(math.isfinite, (x0, y0, x1, y1)))):
        raise ValueError(f"{told} is not xmin,ymin,xmax,ymax")
    if is_share((x0, y0, x1, y1)) and any(side % 1 for side in (x0, y0, x1, y1)):
        raise ValueError(f"{told} lies within 0..1, or little beyond; write boxes in pixels of the image")
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Annotated(name, of_pixels((x0, y0), (x1, y1), origin), difficult)
