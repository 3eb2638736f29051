"""Opening of the dataset that the job's table ``[dataset]`` describes."""

from __future__ import annotations

from collections.abc import Callable

from storage.datasets.dataset import Dataset
from storage.datasets.digits_set import open_digits
from storage.datasets.image_files import open_folder, open_listing
from storage.datasets.notes import in_words
from storage.datasets.reading import RGB, Bands
from storage.datasets.rows import open_tensors, open_texts
from storage.datasets.spec import DatasetSpec
from storage.datasets.torchvision_sets import open_torchvision


def open_dataset(spec: DatasetSpec, bands: Bands = RGB) -> Dataset:
    """Open a dataset.

    Parameters
    ----------
    spec
        The job's table.
    bands
        What the values of images become; it does not matter for texts and tensors.

    Raises
    ------
    ValueError
        If the dataset does not exist or is empty, or if its listing is invalid. The message is one line.
    """
    opened = _IMAGES[spec.kind](spec, bands) if spec.kind in _IMAGES else _OTHERS[spec.kind](spec)
    if not opened.samples:
        what = "image" if opened.modality == "image" else "row"
        besides = f"; left out: {in_words(opened.left_out)}" if opened.left_out else ""
        raise ValueError(f"dataset: there is no {what} in {spec.path}{besides}")
    return opened


_IMAGES: dict[str, Callable[[DatasetSpec, Bands], Dataset]] = {
    "folder": open_folder,
    "csv": open_listing,
    "torchvision": open_torchvision,
    "digits": open_digits,
}
_OTHERS: dict[str, Callable[[DatasetSpec], Dataset]] = {
    "text": open_texts,
    "tensors": open_tensors,
}
