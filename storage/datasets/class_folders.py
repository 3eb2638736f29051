"""Datasets of image files in a folder of class folders, or in one folder without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from storage.datasets.dataset import Dataset, Sample, spread
from storage.datasets.formats import is_hidden
from storage.datasets.image_files import of_files, printable
from storage.datasets.reading import Reading
from storage.places import addresses, folders_in


def of_class_folders(
    root: Path, images: Sequence[str], left_out: Mapping[str, int], limit: int | None, how: Reading
) -> Dataset:
    """Make a dataset of the images below a folder, whose labels are the folders that they lie in.

    Classes are numbered in the sorted order of the folders, as by torchvision's ImageFolder; a folder without
    images has a number too. Hidden folders and ``__MACOSX`` are left out.

    Parameters
    ----------
    images
        Paths of the images from ``root``, sorted.
    left_out
        The number of files that are left out, by what they are.
    limit
        Largest number of images that are used; None uses all.
    how
        How the files are read.

    Raises
    ------
    ValueError
        If an image lies beside class folders; the message is one line.
    """
    classes = [name for name in folders_in(root) if not is_hidden(PurePath(name))]
    loose = [name for name in images if "/" not in name]
    if classes and loose:
        raise ValueError(f"dataset.path: {root / loose[0]} lies beside class folders; move it into one")
    index = {name: label for label, name in enumerate(classes)}
    folders = [name.split("/", 1)[0] for name in images]
    samples = [
        Sample(name, uri, index.get(folder))
        for name, uri, folder in zip(images, addresses(root, images), folders, strict=True)
        if folder in index or "/" not in name
    ]
    left_out = dict(left_out)
    if empty := len(index.keys() - set(folders)):
        left_out["class folders without an image"] = empty
    names = [printable(name) for name in classes]
    return of_files(root, spread(samples, limit), names, how, left_out=left_out)
