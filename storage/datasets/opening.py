"""Datasets: which images, texts or arrays there are, what is known about them, and what they hold.

Every kind gives the same :class:`Dataset`. Opening one decodes nothing where that can be avoided; an item
that cannot be read shows only when it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.datasets.geometry import SUFFIXES, Box, decode, decode_mask, prepare_image, rgb
from storage.datasets.listing import read_listing
from storage.datasets.tables import Tensors, Texts, read_tensors, read_texts
from storage.datasets.torchvision_sets import labels_of, open_set
from storage.files import UnreadableError, sha256_of_json
from storage.places import Place, files_under, folders_in, is_remote

__all__ = [
    "Dataset",
    "DatasetSpec",
    "Item",
    "Sample",
    "UnreadableError",
    "open_dataset",
    "prepare_image",
]

Item = Image.Image | str | NDArray[np.float32]

DIGITS = 1000  # images of the demo, unless the job has a limit

# What each kind needs, and what else it takes.
_KEYS = {
    "folder": (("path",), ()),
    "csv": (("path",), ("images",)),
    "torchvision": (("path", "name"), ("split",)),
    "digits": ((), ("split", "seed")),
    "text": (("path",), ("column",)),
    "tensors": (("path",), ()),
}


class DatasetSpec(BaseModel):
    """The job's table ``[dataset]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder", "csv", "torchvision", "digits", "text", "tensors"] = Field(
        description="images: folder of class folders, CSV listing, a set torchvision knows, or the demo's "
        "digits; text: a column of a CSV or Parquet file; tensors: arrays or columns of numbers"
    )
    path: Place | None = Field(
        None, description="the folder, the file, or where torchvision's sets lie or are downloaded to"
    )
    images: Place | None = Field(None, description="csv: where the files lie; beside the CSV by default")
    column: str | None = Field(
        None, description="text: the column that holds the texts; text by default", min_length=1
    )
    name: str | None = Field(None, description="torchvision: name of the set, e.g. CIFAR10")
    split: str | None = Field(None, description="torchvision and digits: e.g. train or test")
    seed: int | None = Field(None, ge=0, description="digits: another seed draws other images")
    limit: int | None = Field(None, ge=1, description="at most so many samples, spread evenly over the set")

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> DatasetSpec:
        needed, optional = _KEYS[self.kind]
        for key in ("path", "images", "column", "name", "split", "seed"):
            given = getattr(self, key) is not None
            if key in needed and not given:
                raise ValueError(f'kind = "{self.kind}" needs the key {key}')
            if given and key not in needed + optional:
                known = ", ".join([*needed, *optional, "limit"])
                raise ValueError(f'kind = "{self.kind}" does not take the key {key}; it takes {known}')
        return self


@dataclass(frozen=True)
class Sample:
    """What is known about an image, a text or an array before it is loaded.

    ``sample_id`` is unique in the dataset and the same on every machine; ``boxes`` are in the pixels of an
    image as it lies on the disk.
    """

    sample_id: str
    uri: str
    label: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, texts or arrays in a fixed order.

    Attributes
    ----------
    samples
        One an item.
    classes
        Names by label; empty where the labels are bare numbers or there are none.
    modality
        What the items are.
    features
        Names of the columns that arrays come from; empty where they come from none.
    masks
        The mask of an image by its index, as large as the image and not black where its object is; None for
        an image without. None if no image has one.
    """

    samples: Sequence[Sample]
    classes: list[str]
    _load: Callable[[int], Item]
    _contents: Callable[[], list[Any]]
    modality: Literal["image", "text", "tensor"] = "image"
    features: list[str] = field(default_factory=list)
    masks: Callable[[int], Image.Image | None] | None = None

    def load(self, index: int) -> Item:
        """An image in 8-bit RGB, a text, or an array float32 (T,) or (C, T).

        Raises
        ------
        UnreadableError
            With the reason in one line.
        """
        return self._load(index)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids, labels, boxes, classes, and sizes of images or contents of texts and arrays.

        Where the files lie does not matter.
        """
        return sha256_of_json([self.classes, self._contents()])


def open_dataset(spec: DatasetSpec) -> Dataset:
    """Open a dataset.

    Raises
    ------
    ValueError
        In one line, if it is not there, is empty, or a listing is wrong.
    """
    opened = _OPENERS[spec.kind](spec)
    if not opened.samples:
        what = "image" if opened.modality == "image" else "row"
        raise ValueError(f"dataset: there is no {what} in {spec.path}")
    return opened


def _folder(spec: DatasetSpec) -> Dataset:
    """Class folders, sorted, as torchvision's ImageFolder numbers them; or images without labels."""
    root = _existing(spec.path, "folder")
    classes = [name for name in folders_in(root) if not name.startswith(".")]
    images = [name for name in files_under(root) if _is_image(name)]
    loose = [name for name in images if "/" not in name]
    if classes and loose:
        raise ValueError(f"dataset: {root / loose[0]} lies beside class folders; move it into one")
    index = {name: label for label, name in enumerate(classes)}
    folders = [name.split("/", 1)[0] for name in images]
    samples = [
        Sample(name, str(root / name), index.get(folder))
        for name, folder in zip(images, folders, strict=True)
        if folder in index or "/" not in name
    ]
    return _of_files(root, _spread(samples, spec.limit), classes)


def _csv(spec: DatasetSpec) -> Dataset:
    path = _existing(spec.path, "file")
    images = _existing(spec.images or path.parent, "folder")
    entries, classes = read_listing(path)
    samples = [Sample(e.file, str(images / e.file), e.label, tuple(e.boxes)) for e in entries]
    masks = {e.file: e.mask for e in entries if e.mask is not None}
    return _of_files(images, _spread(samples, spec.limit), classes, masks)


def _torchvision(spec: DatasetSpec) -> Dataset:
    """Any of ``torchvision.datasets`` whose items are (PIL image, class index)."""
    assert spec.name is not None
    assert spec.path is not None
    if is_remote(spec.path):
        raise ValueError("dataset.path: torchvision reads its sets from folders, not from S3")
    data = open_set(spec.name, spec.path, spec.split)
    chosen = _spread(range(len(data)), spec.limit)
    labels = labels_of(spec.name, data, chosen)
    split = spec.split or "all"
    samples = [
        Sample(f"{split}/{index:06d}", f"torchvision:{spec.name}/{split}/{index:06d}", label)
        for index, label in zip(chosen, labels, strict=True)
    ]

    def load(index: int) -> Image.Image:
        try:
            return rgb(data[chosen[index]][0])
        except OSError as error:
            raise UnreadableError(" ".join(str(error).split())) from error

    classes = [str(name) for name in getattr(data, "classes", [])]
    return Dataset(samples, classes, load, lambda: [spec.name, *_known(samples)])


class _Drawn(Sequence[Sample]):
    """Samples that are drawn when they are asked for: drawing all of them would cost each worker seconds."""

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


def _digits(spec: DatasetSpec) -> Dataset:
    from storage.datasets import digits

    split, seed, count = spec.split or "test", spec.seed or 0, spec.limit or DIGITS
    if split not in digits.SPLITS:
        raise ValueError(f"dataset.split: digits have the splits {' and '.join(digits.SPLITS)}, not {split}")
    draw = lru_cache(maxsize=64)(lambda index: digits.sample(split, index, seed))

    def sample(index: int) -> Sample:
        uri = f"digits:{split}/{seed}/{index:06d}"
        return Sample(f"{split}/{index:06d}", uri, draw(index).label, (draw(index).box,))

    def print_of() -> list[Any]:
        # A pure function of these numbers for one version of its libraries, which a few images tell.
        pixels = [hashlib.sha256(draw(index).image.tobytes()).hexdigest() for index in range(min(8, count))]
        return [split, seed, count, pixels]

    return Dataset(
        _Drawn(count, sample),
        list(digits.CLASSES),
        lambda index: Image.fromarray(draw(index).image),
        print_of,
        masks=lambda index: Image.fromarray(draw(index).mask),
    )


def _text(spec: DatasetSpec) -> Dataset:
    path = _existing(spec.path, "file")
    return _of_rows(path, read_texts(path, spec.column or "text"), "text", spec.limit)


def _tensors(spec: DatasetSpec) -> Dataset:
    path = _existing(spec.path, "file")
    return _of_rows(path, read_tensors(path), "tensor", spec.limit)


_OPENERS: dict[str, Callable[[DatasetSpec], Dataset]] = {
    "folder": _folder,
    "csv": _csv,
    "torchvision": _torchvision,
    "digits": _digits,
    "text": _text,
    "tensors": _tensors,
}


def _of_files(
    root: Path, samples: list[Sample], classes: list[str], masks: Mapping[str, str] | None = None
) -> Dataset:
    """A dataset whose ids are paths from ``root``; ``masks`` are such paths by sample id."""
    files = [masks.get(sample.sample_id) for sample in samples] if masks else []

    def contents() -> list[Any]:
        sizes = _sizes(root, [sample.sample_id for sample in samples])
        of_masks = _sizes(root, [name or "" for name in files])
        named = zip(files, of_masks, strict=True)
        return [*_known(samples), sizes, *(name and (PurePath(name).name, size) for name, size in named)]

    def mask(index: int) -> Image.Image | None:
        name = files[index]
        if name is None:
            return None
        try:
            return decode_mask(root / name)
        except UnreadableError as error:
            raise UnreadableError(f"its mask {PurePath(name).name}: {error}") from error

    return Dataset(
        samples,
        classes,
        lambda index: decode(root / samples[index].sample_id),
        contents,
        masks=mask if any(files) else None,
    )


def _of_rows(
    path: Path, table: Texts | Tensors, modality: Literal["text", "tensor"], limit: int | None
) -> Dataset:
    """A dataset whose samples are rows of one file."""
    chosen = _spread(range(len(table)), limit)

    def sample(index: int) -> Sample:
        row = chosen[index]
        sample_id = f"{row:06d}" if table.ids is None else table.ids[row]
        return Sample(
            sample_id, f"{path.name}#{row:06d}", None if table.labels is None else table.labels[row]
        )

    samples = _Drawn(len(chosen), sample)
    return Dataset(
        samples,
        table.classes,
        lambda index: table.load(chosen[index]),
        lambda: [*_known(samples), table.features, table.digest(chosen)],
        modality,
        table.features,
    )


def _sizes(root: Path, names: Sequence[str]) -> list[int]:
    """Bytes of files, -1 for those that are not there."""
    if not names or not is_remote(root):
        return [path.stat().st_size if path.exists() else -1 for path in (root / name for name in names)]
    known = files_under(root)  # one listing, where asking for each would take minutes
    return [known.get(name, -1) for name in names]


def _known(samples: Sequence[Sample]) -> list[Any]:
    return [(s.sample_id, s.label, s.boxes) for s in samples]


def _existing(path: Path | None, what: Literal["file", "folder"]) -> Path:
    assert path is not None
    if not (path.is_dir() if what == "folder" else path.is_file()):
        raise ValueError(f"dataset: there is no {what} {path}")
    return path


def _is_image(name: str) -> bool:
    path = PurePath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` items, evenly spread and in order: sets are often sorted by class."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]
