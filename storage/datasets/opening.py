"""Opening of the dataset that the job's table ``[dataset]`` describes."""

from __future__ import annotations

from pathlib import Path

from storage.datasets.dataset import Dataset
from storage.datasets.index import Indexed, kept_index
from storage.datasets.notes import in_words
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import DatasetSpec


def open_dataset(spec: DatasetSpec, bands: Bands = RGB, run: Path | None = None) -> Dataset:
    """Open a dataset.

    Parameters
    ----------
    spec
        The job's table.
    bands
        What the values of images become; it does not matter for texts and tensors.
    run
        The run that may hold what an earlier pass over the dataset's files found.

    Raises
    ------
    ValueError
        If the dataset does not exist or is empty, or if its listing is invalid. The message is one line.
    """
    if isinstance(spec, Indexed):
        found = None if run is None else kept_index(run, spec.state_of_files())
        opened = spec.open(bands, found)
    else:
        opened = spec.open(bands)
    if not opened.samples:
        what = "image" if opened.modality == "image" else "row"
        where = getattr(spec, "path", None) or f'the dataset of the kind "{spec.kind}"'
        besides = f"; left out: {in_words(opened.left_out)}" if opened.left_out else ""
        raise ValueError(f"dataset: there is no {what} in {where}{besides}")
    return opened
