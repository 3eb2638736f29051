"""Datasets of image files: a folder of class folders, or a CSV listing; masks are files too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from storage.datasets.dataset import Dataset, Sample, existing, known, spread
from storage.datasets.decoding import SUFFIXES, decode, decode_mask
from storage.datasets.listing import read_listing
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from storage.places import files_under, folders_in, is_remote


def open_folder(spec: DatasetSpec) -> Dataset:
    """Open a folder of class folders, or a folder of images without labels.

    Classes are numbered in the sorted order of the folders, as by torchvision's ImageFolder.
    """
    root = existing(spec.path, "folder")
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
    return of_files(root, spread(samples, spec.limit), classes)


def open_listing(spec: DatasetSpec) -> Dataset:
    """Open the images of a CSV listing, see :mod:`storage.datasets.listing`."""
    path = existing(spec.path, "file")
    images = existing(spec.images or path.parent, "folder")
    entries, classes = read_listing(path)
    samples = [Sample(e.file, str(images / e.file), e.label, tuple(e.boxes)) for e in entries]
    masks = {e.file: e.mask for e in entries if e.mask is not None}
    return of_files(images, spread(samples, spec.limit), classes, masks)


def of_files(
    root: Path, samples: list[Sample], classes: list[str], masks: Mapping[str, str] | None = None
) -> Dataset:
    """Make a dataset of image files.

    Parameters
    ----------
    root
        The folder of the files.
    samples
        Samples whose ids are paths from ``root``.
    classes
        Class names by label.
    masks
        Mask files as paths from ``root``, by sample id.
    """
    files = [masks.get(sample.sample_id) for sample in samples] if masks else []

    def contents() -> list[Any]:
        # Sizes in place of contents: reading every image would make the start of a job slow.
        sizes = _sizes(root, [sample.sample_id for sample in samples])
        of_masks = _sizes(root, [name or "" for name in files])
        named = zip(files, of_masks, strict=True)
        return [*known(samples), sizes, *(name and (PurePath(name).name, size) for name, size in named)]

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


def _sizes(root: Path, names: Sequence[str]) -> list[int]:
    """Return the sizes of files in bytes; -1 for a file that does not exist."""
    if not names or not is_remote(root):
        return [path.stat().st_size if path.exists() else -1 for path in (root / name for name in names)]
    known = files_under(root)  # one listing, because a request per file would take minutes
    return [known.get(name, -1) for name in names]


def _is_image(name: str) -> bool:
    """Whether a file's name is that of an image; hidden files are not."""
    path = PurePath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
