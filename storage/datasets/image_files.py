"""Datasets of image files: a folder of class folders, or a CSV listing; masks are files too."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from storage.datasets.bands import read_image
from storage.datasets.boxes import check_unit
from storage.datasets.dataset import Dataset, Sample, existing, known, spread
from storage.datasets.folders import image_names
from storage.datasets.formats import is_hidden
from storage.datasets.listing import read_listing
from storage.datasets.masks import decode_mask
from storage.datasets.notes import Notes
from storage.datasets.reading import DEFAULT, RGB, Bands, Reading
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from storage.places import files_under, folders_in, is_remote


def open_folder(spec: DatasetSpec, bands: Bands = RGB) -> Dataset:
    """Open a folder of class folders, or a folder of images without labels.

    Classes are numbered in the sorted order of the folders, as by torchvision's ImageFolder; a folder without
    images has a number too. Hidden files and folders and ``__MACOSX`` are left out.
    """
    root = existing(spec.path, "folder")
    classes = [name for name in folders_in(root) if not is_hidden(PurePath(name))]
    images, left_out = image_names(root)
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
    if empty := len(index.keys() - set(folders)):
        left_out["class folders without an image"] = empty
    how = replace(spec.reading, bands=bands)
    opened = of_files(root, spread(samples, spec.limit), [_printable(name) for name in classes], how)
    return replace(opened, left_out=left_out)


def open_listing(spec: DatasetSpec, bands: Bands = RGB) -> Dataset:
    """Open the images of a CSV listing, see :mod:`storage.datasets.listing`."""
    path = existing(spec.path, "file")
    images = existing(spec.images or path.parent, "folder")
    listing = read_listing(path)
    entries = listing.entries
    check_unit(path, [(e.file, e.boxes) for e in entries], spec.boxes)
    samples = [
        Sample(e.file, str(images / e.file), boxes=tuple(e.boxes), labels=tuple(e.labels))
        if listing.several
        else Sample(e.file, str(images / e.file), e.labels[0], tuple(e.boxes))
        for e in entries
    ]
    masks = {e.file: e.mask for e in entries if e.mask is not None}
    how = replace(spec.reading, bands=bands)
    return of_files(images, spread(samples, spec.limit), listing.classes, how, masks)


def of_files(
    root: Path,
    samples: list[Sample],
    classes: list[str],
    how: Reading = DEFAULT,
    masks: Mapping[str, str] | None = None,
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
    how
        How the files are read.
    masks
        Mask files as paths from ``root``, by sample id.
    """
    names = [sample.sample_id for sample in samples]
    files = [masks.get(name) for name in names] if masks else []
    shown = [replace(s, sample_id=_printable(s.sample_id), uri=_printable(s.uri)) for s in samples]

    def contents() -> list[Any]:
        # Sizes in place of contents: reading every image would make the start of a job slow.
        of_masks = _sizes(root, [name or "" for name in files])
        named = zip(files, of_masks, strict=True)
        return [
            *known(shown),
            _sizes(root, names),
            *(name and (PurePath(name).name, size) for name, size in named),
        ]

    def load(index: int, notes: Notes) -> Image.Image | NDArray[Any]:
        if names[index] != shown[index].sample_id:
            raise UnreadableError("the name of the file is not UTF-8; rename it")
        return read_image(_found(root, names[index]), how, notes)

    def mask(index: int, notes: Notes) -> Image.Image | None:
        name = files[index]
        if name is None:
            return None
        try:
            return decode_mask(_found(root, name), how, notes)
        except UnreadableError as error:
            raise UnreadableError(f"its mask {PurePath(name).name}: {error}") from error

    return Dataset(
        shown,
        classes,
        load,
        contents,
        masks=mask if any(files) else None,
        relative_boxes=how.relative_boxes,
    )


def _found(root: Path, name: str) -> Path:
    """Return the path of a listed file, whose letters with accents may be composed otherwise on the disk.

    macOS decomposes an "é" into two code points, and most editors write it as one.
    """
    path = root / name
    if name.isascii() or is_remote(root) or _size(path) >= 0:
        return path
    forms = (root / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((other for other in forms if _size(other) >= 0), path)


def _printable(name: str) -> str:
    """Return a name with escapes for the bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _size(path: Path) -> int:
    """Return the size of a file in bytes; -1 if it cannot be looked at."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # a name may be too long, or hold a NUL
        return -1


def _sizes(root: Path, names: Sequence[str]) -> list[int]:
    """Return the sizes of files in bytes; -1 for a file that does not exist."""
    if not names or not is_remote(root):
        return [_size(_found(root, name)) for name in names]
    sizes = files_under(root)  # one listing, because a request per file would take minutes
    return [sizes.get(name, -1) for name in names]
