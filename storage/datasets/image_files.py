"""Datasets of image files, whose masks are files too."""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from storage.datasets.bands import read_encoded
from storage.datasets.dataset import Dataset, Mask, Sample, known
from storage.datasets.decoding import contents as bytes_of
from storage.datasets.decoding import decoded
from storage.datasets.masks import mask_of
from storage.datasets.notes import Notes
from storage.datasets.reading import DEFAULT, Reading
from storage.files import UnreadableError
from storage.places import files_under, is_remote


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a dataset of image files.

    Attributes
    ----------
    names
        Mask files as paths from ``root``, by sample id.
    root
        Their folder; None if they lie in that of the images.
    read
        Function that makes the mask of a sample from a file that Pillow opened, and appends to a list how;
        the values are those of :mod:`storage.datasets.masks`.
    by_label
        Whether ``read`` returns one mask per label of the sample, (labels, H, W) uint8.
    """

    names: Mapping[str, str]
    root: Path | None = None
    read: Callable[[Image.Image, Sample, Reading, Notes], Mask] = lambda image, _, how, notes: mask_of(
        image, how, notes
    )
    by_label: bool = False


def of_files(
    root: Path,
    samples: list[Sample],
    classes: list[str],
    how: Reading = DEFAULT,
    masks: MaskFiles | None = None,
    left_out: Mapping[str, int] | None = None,
    *,
    published: bool = False,
    more: Callable[[], list[Any]] = list,
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
        The masks; None if no image has one.
    left_out
        The number of files in the folder that are no samples, by what they are.
    published
        Whether the set is published with the numbers of its classes.
    more
        Function that returns what belongs to the fingerprint besides the samples and the files.
    """
    names = [sample.sample_id for sample in samples]
    mask_root = (masks and masks.root) or root
    files = [masks.names.get(name) for name in names] if masks and masks.names else []
    shown = [_printable(sample) for sample in samples]
    of_images, of_masks = array("q"), array("q")  # the sizes in the fingerprint, once it was asked for

    def contents() -> list[Any]:
        # Sizes in place of contents: reading every image would make the start of a job slow.
        of_images[:] = array("q", _sizes(root, names))
        of_masks[:] = array("q", _sizes(mask_root, [name or "" for name in files]))
        named = zip(files, of_masks, strict=True)
        return [
            *known(shown),
            of_images.tolist(),
            *(name and (PurePath(name).name, size) for name, size in named),
            *more(),
        ]

    def load(index: int, notes: Notes) -> Image.Image | NDArray[Any]:
        if names[index] != shown[index].sample_id:
            raise UnreadableError("the name of the file is not UTF-8; rename it")
        data = _unchanged(bytes_of(_found(root, names[index])), of_images, index)
        return read_encoded(data, how, notes)

    def mask(index: int, notes: Notes) -> Mask | None:
        name = files[index]
        if masks is None or name is None:
            return None
        try:
            data = _unchanged(bytes_of(_found(mask_root, name)), of_masks, index)
            return decoded(data, lambda image: masks.read(image, shown[index], how, notes))
        except UnreadableError as error:
            raise UnreadableError(f"its mask {PurePath(name).name}: {error}") from error

    return Dataset(
        shown,
        classes,
        load,
        contents,
        masks=mask if any(files) else None,
        masks_by_label=masks is not None and masks.by_label,
        relative_boxes=how.relative_boxes,
        left_out=left_out or {},
        published=published,
        parallel=True,
    )


def _unchanged(data: bytes, sizes: Sequence[int], index: int) -> bytes:
    """Return the contents of a file; raise UnreadableError if its size is not the one in the fingerprint."""
    if sizes and sizes[index] not in {-1, len(data)}:
        raise UnreadableError(
            f"the file changed after the job was planned: it had {sizes[index]} bytes and has {len(data)}"
        )
    return data


def _found(root: Path, name: str) -> Path:
    """Return the path of a listed file, whose letters with accents may be composed otherwise on the disk.

    macOS decomposes an "é" into two code points, and most editors write it as one.
    """
    path = root / name
    if name.isascii() or is_remote(root) or _size(path) >= 0:
        return path
    forms = (root / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((other for other in forms if _size(other) >= 0), path)


def printable(name: str) -> str:
    """Return a name with escapes for the bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _printable(sample: Sample) -> Sample:
    if sample.sample_id.isascii() and sample.uri.isascii():
        return sample
    return replace(sample, sample_id=printable(sample.sample_id), uri=printable(sample.uri))


def _size(path: str | Path) -> int:
    """Return the size of a file of this machine in bytes; -1 if it cannot be looked at."""
    try:
        # An object for each of a million paths would take seconds.
        return os.stat(path).st_size  # noqa: PTH116
    except (OSError, ValueError):  # a name may be too long, or hold a NUL
        return -1


def _sizes(root: Path, names: Sequence[str]) -> list[int]:
    """Return the sizes of files in bytes; -1 for a file that does not exist."""
    if not names or not is_remote(root):
        base = str(root)
        paths = (os.path.join(base, n) if n.isascii() else _found(root, n) for n in names)  # noqa: PTH118
        return [_size(path) for path in paths]
    sizes = files_under(root)  # one listing, because a request per file would take minutes
    return [sizes.get(name, -1) for name in names]
