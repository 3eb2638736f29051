"""Datasets: which images there are, what is known about them, and their pixels.

Every kind gives the same :class:`Dataset`. Opening one decodes nothing where that can be avoided; an image
that cannot be decoded shows only when it is asked for.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.files import sha256_of_json
from storage.images import SUFFIXES, Box, UnreadableImageError, decode, prepare_image, rgb
from storage.listing import read_listing

__all__ = [
    "Dataset",
    "DatasetSpec",
    "Sample",
    "UnreadableImageError",
    "open_dataset",
    "prepare_image",
]

DIGITS = 1000  # images of the demo, unless the job has a limit

# What each kind needs, and what else it takes.
_KEYS = {
    "folder": (("path",), ()),
    "csv": (("path",), ("images",)),
    "torchvision": (("path", "name"), ("split",)),
    "digits": ((), ("split", "seed")),
}


class DatasetSpec(BaseModel):
    """The job's table ``[dataset]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder", "csv", "torchvision", "digits"] = Field(
        description="folder of class folders, CSV listing, a set torchvision knows, or the demo's digits"
    )
    path: Path | None = Field(
        None, description="the folder, the CSV file, or where torchvision's sets lie or are downloaded to"
    )
    images: Path | None = Field(None, description="csv: where the files lie; beside the CSV by default")
    name: str | None = Field(None, description="torchvision: name of the set, e.g. CIFAR10")
    split: str | None = Field(None, description="torchvision and digits: e.g. train or test")
    seed: int | None = Field(None, ge=0, description="digits: another seed draws other images")
    limit: int | None = Field(None, ge=1, description="at most so many images, spread evenly over the set")

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> DatasetSpec:
        needed, optional = _KEYS[self.kind]
        for key in ("path", "images", "name", "split", "seed"):
            given = getattr(self, key) is not None
            if key in needed and not given:
                raise ValueError(f'kind = "{self.kind}" needs the key {key}')
            if given and key not in needed + optional:
                known = ", ".join([*needed, *optional, "limit"])
                raise ValueError(f'kind = "{self.kind}" does not take the key {key}; it takes {known}')
        return self


@dataclass(frozen=True)
class Sample:
    """What is known about an image before it is decoded.

    ``sample_id`` is unique in the dataset and the same on every machine; ``boxes`` are in the pixels of the
    image as it lies on the disk.
    """

    sample_id: str
    uri: str
    label: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in a fixed order.

    Attributes
    ----------
    samples
        One an image.
    classes
        Names by label; empty where the labels are bare numbers or there are none.
    """

    samples: Sequence[Sample]
    classes: list[str]
    _load: Callable[[int], Image.Image]
    _contents: Callable[[], list[Any]]

    def image(self, index: int) -> Image.Image:
        """Decode an image to 8-bit RGB.

        Raises
        ------
        UnreadableImageError
            With the reason in one line.
        """
        return self._load(index)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids, labels, boxes, classes and file sizes: where the files lie does not matter."""
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
        raise ValueError(f"dataset: there is no image in {spec.path}")
    return opened


def _folder(spec: DatasetSpec) -> Dataset:
    """Class folders, sorted, as torchvision's ImageFolder numbers them; or images without labels."""
    root = _existing(spec.path, "folder")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = sorted(p for p in root.iterdir() if _is_image(p))
    if classes and loose:
        raise ValueError(f"dataset: {loose[0]} lies beside class folders; move it into one")
    labelled = [
        (p, i) for i, name in enumerate(classes) for p in sorted((root / name).rglob("*")) if _is_image(p)
    ]
    samples = [Sample(p.relative_to(root).as_posix(), str(p), label) for p, label in labelled]
    samples += [Sample(p.name, str(p)) for p in loose]
    return _of_files(_spread(samples, spec.limit), classes)


def _csv(spec: DatasetSpec) -> Dataset:
    path = _existing(spec.path, "file")
    images = _existing(spec.images or path.parent, "folder")
    entries, classes = read_listing(path)
    samples = [Sample(e.file, str(images / e.file), e.label, tuple(e.boxes)) for e in entries]
    return _of_files(_spread(samples, spec.limit), classes)


def _torchvision(spec: DatasetSpec) -> Dataset:
    """Any of ``torchvision.datasets`` whose items are (PIL image, class index)."""
    data = _torchvision_set(spec)
    chosen = _spread(range(len(data)), spec.limit)
    if chosen:
        _check_item(data[chosen[0]], spec)
    labels = _labels(data, chosen)
    split = spec.split or "all"
    samples = [
        Sample(f"{split}/{index:06d}", f"torchvision:{spec.name}/{split}/{index:06d}", label)
        for index, label in zip(chosen, labels, strict=True)
    ]

    def load(index: int) -> Image.Image:
        try:
            return rgb(data[chosen[index]][0])
        except OSError as error:
            raise UnreadableImageError(" ".join(str(error).split())) from error

    classes = [str(name) for name in getattr(data, "classes", [])]
    return Dataset(samples, classes, load, lambda: [spec.name, *_known(samples)])


def _torchvision_set(spec: DatasetSpec) -> Any:
    """Construct the set as its signature allows; download it only if it is not there."""
    import torchvision  # takes seconds, and only this kind needs it

    cls: Any = getattr(torchvision.datasets, spec.name or "", None)
    if not inspect.isclass(cls):
        raise ValueError(f"dataset.name: torchvision.datasets has no {spec.name}; names are like CIFAR10")
    own = inspect.signature(cls).parameters
    # EMNIST and others hand what they do not name on to their base class.
    inits = [vars(base)["__init__"] for base in inspect.getmro(cls) if "__init__" in vars(base)]
    taken = {key for init in inits for key in inspect.signature(init).parameters}
    arguments: dict[str, Any] = {"root": str(spec.path)} if "root" in own else {}
    splitting = next((key for key in ("split", "train", "image_set") if key in taken), None)
    if (splitting is None) != (spec.split is None):
        verb = "needs" if splitting else "does not take"
        raise ValueError(f"dataset.split: {spec.name} {verb} a split")
    if splitting == "train" and spec.split not in {"train", "test"}:
        raise ValueError(f"dataset.split: {spec.name} has the splits train and test, not {spec.split}")
    if splitting is not None:
        arguments[splitting] = spec.split == "train" if splitting == "train" else spec.split
    try:
        try:
            return cls(**arguments)
        except (RuntimeError, OSError):
            if "download" not in taken:
                raise
            arguments["download"] = True
            return cls(**arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"dataset: {spec.name} cannot be opened: {' '.join(str(error).split())}") from error


def _check_item(item: Any, spec: DatasetSpec) -> None:
    ok = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)
    if not ok or not _is_index(item[1]):
        raise ValueError(f"dataset.name: the items of {spec.name} are not (image, class index)")


def _labels(data: Any, chosen: Sequence[int]) -> list[int]:
    """Labels of the chosen items: from the set's own list where it has one, else by decoding them."""
    for name in ("targets", "labels", "_labels", "_samples"):
        known = getattr(data, name, None)
        if known is None or len(known) != len(data):
            continue
        labels = [known[i][1] if name == "_samples" else known[i] for i in chosen]
        ends = {0, len(chosen) - 1}
        if all(_is_index(v) for v in labels) and all(int(labels[i]) == int(data[chosen[i]][1]) for i in ends):
            return [int(v) for v in labels]
    return [int(data[i][1]) for i in chosen]


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
    from storage import digits

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
    )


_OPENERS: dict[str, Callable[[DatasetSpec], Dataset]] = {
    "folder": _folder,
    "csv": _csv,
    "torchvision": _torchvision,
    "digits": _digits,
}


def _of_files(samples: list[Sample], classes: list[str]) -> Dataset:
    """A dataset whose ``uri`` are paths."""

    def contents() -> list[Any]:
        sizes = [path.stat().st_size if path.exists() else -1 for path in (Path(s.uri) for s in samples)]
        return [*_known(samples), sizes]

    return Dataset(samples, classes, lambda index: decode(Path(samples[index].uri)), contents)


def _known(samples: Sequence[Sample]) -> list[Any]:
    return [(s.sample_id, s.label, s.boxes) for s in samples]


def _existing(path: Path | None, what: Literal["file", "folder"]) -> Path:
    assert path is not None
    if not (path.is_dir() if what == "folder" else path.is_file()):
        raise ValueError(f"dataset: there is no {what} {path}")
    return path


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def _is_index(value: Any) -> bool:
    """Whether a label is one whole number, in whichever type a set keeps it."""
    return (
        getattr(value, "ndim", 0) == 0
        and not isinstance(value, (str, bytes, float))
        and hasattr(value, "__int__")
    )


def _spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` items, evenly spread and in order: sets are often sorted by class."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]
