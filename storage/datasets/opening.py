"""Opening of the dataset that the job's table ``[dataset]`` describes."""

from __future__ import annotations

from storage.datasets.dataset import Dataset
from storage.datasets.notes import in_words
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import DatasetSpec


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
    opened = spec.open(bands)
    if not opened.samples:
        what = "image" if opened.modality == "image" else "row"
        where = getattr(spec, "path", None) or f'the dataset of the kind "{spec.kind}"'
        besides = f"; left out: {in_words(opened.left_out)}" if opened.left_out else ""
        raise ValueError(f"dataset: there is no {what} in {where}{besides}")
    return opened
