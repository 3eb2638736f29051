"""The interface of every kind of dataset: samples in a fixed order, and a function that loads their items.

Opening a dataset decodes items only if this cannot be avoided. An item that cannot be read raises an error
only when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.datasets.boxes import placed
from storage.datasets.geometry import Box, size_of
from storage.datasets.notes import Notes
from storage.files import UnreadableError, regular, sha256_of_json

Item = Image.Image | str | NDArray[Any]  # arrays are images with other bands than RGB, or plain numbers

Mask = Image.Image | NDArray[np.uint8]  # an array holds one mask per label


@dataclass(frozen=True, slots=True)
class Sample:
    """Facts about an image, a text or an array that are known before it is loaded.

    Attributes
    ----------
    sample_id
        Name that is unique in the dataset and the same on every machine.
    uri
        Place of the item, for people to read.
    label
        Class index in the dataset's own numbering; None if the item has no label, or may have several.
    boxes
        Boxes of the objects, in pixels of the image that :meth:`Dataset.load` gives, or in shares of
        its width and height.
    box_labels
        The class index of the object in each box; empty if a box counts whatever class is explained.
    labels
        The class indices of an item that may have several labels, and has no ``label``.
    frame
        (width, height) of the image in whose pixels the boxes are, where that is published: an image of
        another size is not the one that they belong to. None if it is not known.
    """

    sample_id: str
    uri: str
    label: int | None = None
    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()
    box_labels: tuple[int, ...] = ()
    frame: tuple[int, int] | None = None

    @property
    def every_label(self) -> tuple[int, ...]:
        """All labels of the item: :attr:`labels`, or the only one."""
        return self.labels if self.label is None else (self.label,)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, texts or arrays in a fixed order.

    Attributes
    ----------
    samples
        One sample per item.
    classes
        Class names by label; empty if the labels are plain numbers or if there are no labels.
    published
        Whether the set is published with the numbers of its classes. Otherwise the classes are numbered in
        sorted order here, which says nothing about the numbers that a model gives them.
    parallel
        Whether several threads may load items and masks at the same time.
    reads_all
        Whether the fingerprint takes to read every item.
    modality
        Kind of the items.
    features
        Names of the columns from which arrays were made; empty if they were not made from columns.
    masks
        Function that returns the mask of an image by its index, and appends to a list how it was read. The
        mask is as large as the image, with the values of :mod:`storage.datasets.masks`. The function returns
        None for an image without a mask. None if no image has a mask.
    masks_by_label
        Whether ``masks`` returns an array (labels, H, W) uint8 in place of a mask: the objects of each class,
        in the order of :attr:`Sample.labels`.
    relative_boxes
        Whether boxes are in shares of the image's width and height, and not in pixels.
    left_out
        The number of files in the dataset's folder that are no samples, by what they are.
    told
        How the dataset was read where the job leaves that open, in words.
    index
        What a kind found in a pass over large files, as a pyarrow.Table, which the run keeps so that no
        worker has to look for it again; see :mod:`storage.datasets.index`. None where there is no such pass.
    """

    samples: Sequence[Sample]
    classes: list[str]
    _load: Callable[[int, Notes], Item]
    _contents: Callable[[], list[Any]]
    modality: Literal["image", "text", "tensor"] = "image"
    features: list[str] = field(default_factory=list)
    masks: Callable[[int, Notes], Mask | None] | None = None
    masks_by_label: bool = False
    relative_boxes: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    published: bool = False
    told: str = ""
    index: Any = None
    parallel: bool = False
    reads_all: bool = False

    def load(self, index: int, notes: Notes | None = None) -> Item:
        """Load an item: an image in 8-bit RGB or as an array (C, H, W), a text, or float32 (T,) or (C, T).

        Parameters
        ----------
        index
            Index of the sample.
        notes
            A list to which is appended what was done to the item.

        Raises
        ------
        UnreadableError
            If the item cannot be read; the message is the reason in one line.
        """
        return self._load(index, [] if notes is None else notes)

    def boxes(self, index: int, size: tuple[int, int], notes: Notes) -> list[Box]:
        """Return the boxes of an image, as :meth:`objects` does, without the classes of their objects."""
        return [box for box, _ in self.objects(index, size, notes)]

    def objects(self, index: int, size: tuple[int, int], notes: Notes) -> list[tuple[Box, int | None]]:
        """Return the boxes of an image in its pixels, as :func:`storage.datasets.boxes.placed` clips them.

        With each box comes the class index of its object; None if it counts whatever class is explained.

        Parameters
        ----------
        index
            Index of the sample.
        size
            (width, height) of the image that :meth:`load` gives.
        notes
            A list to which is appended what was done to the boxes.

        Raises
        ------
        UnreadableError
            If the boxes are in pixels of an image of another size; the message is one line.
        """
        sample = self.samples[index]
        frame = sample.frame
        if frame not in (None, size):
            wants, has = ("{}x{}".format(*each) for each in (frame, size))
            raise UnreadableError(
                f"its boxes are in pixels of an image of {wants}, and this one is {has}; give the "
                "original files"
            )
        labels = sample.box_labels or (None,) * len(sample.boxes)
        return [
            (kept, label)
            for box, label in zip(sample.boxes, labels, strict=True)
            for kept in placed([box], size, self.relative_boxes, notes)
        ]

    def mask(self, index: int, size: tuple[int, int], notes: Notes) -> Mask | None:
        """Return the mask of an image with the values of :mod:`storage.datasets.masks`; None if it has none.

        Parameters
        ----------
        index
            Index of the sample.
        size
            (width, height) of the image that :meth:`load` gives.
        notes
            A list to which is appended how the mask was read.

        Raises
        ------
        ValueError
            If the mask cannot be read, or is not as large as its image; the message is one line.
        """
        found = None if self.masks is None else self.masks(index, notes)
        if found is not None and size_of(found) != size:
            has, wants = "{}x{}".format(*size_of(found)), "{}x{}".format(*size)
            advice = (
                "; see dataset.exif if it belongs to the image as it is stored"
                if size_of(found) == size[::-1]
                else ""
            )
            raise ValueError(f"its mask is {has}, but the image is {wants}{advice}")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, labels, boxes and classes, and of the items.

        Images count by the sizes of their files, texts and arrays by their contents. The place of the files
        does not matter. Each worker compares it with the one of the run, so that a dataset that changes while
        a job runs gives no image under the id of another one.
        """
        return sha256_of_json([self.classes, self._contents()])


class Drawn(Sequence[Sample]):
    """A sequence of samples that are made on access, since making all of them takes each worker seconds."""

    def __init__(self, count: int, draw: Callable[[int], Sample]) -> None:
        self._count, self._draw = count, draw

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._draw(index)


def known(samples: Sequence[Sample]) -> list[Any]:
    """Return the facts about samples that belong to a dataset's fingerprint."""

    def told(s: Sample) -> tuple[Any, ...]:
        more = {"box_labels": s.box_labels, "frame": s.frame}
        given = {key: value for key, value in more.items() if value}
        return (
            s.sample_id,
            s.label,
            s.boxes,
            *((s.labels,) if s.labels else ()),
            *((given,) if given else ()),
        )

    return [told(sample) for sample in samples]


@contextmanager
def of_key(key: str) -> Iterator[None]:
    """Let the message of a ValueError of the block begin with ``dataset.KEY``, unless it names a key."""
    try:
        yield
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith("dataset.") else f"dataset.{key}: {told}") from error


def existing(path: Path, what: Literal["file", "folder"], key: str = "path") -> Path:
    """Return ``path`` if there is such a file or folder; messages begin with ``dataset.KEY``.

    Raises
    ------
    ValueError
        If there is none; the message is one line.
    """
    try:
        if what == "file":
            regular(path)
        there = path.is_dir() if what == "folder" else path.is_file()
    except UnreadableError as error:
        raise ValueError(f"dataset.{key}: {error}") from error
    except OSError as error:  # e.g. a name that is too long, or a folder that may not be entered
        raise ValueError(f"dataset.{key}: {path} cannot be looked at: {error.strerror}") from error
    if not there:
        raise ValueError(f"dataset.{key}: there is no {what} {path}")
    return path


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """Return at most ``limit`` items in order, spread evenly, because sets are often sorted by class."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]
