"""Opening of the dataset that the job's table ``[dataset]`` describes."""

from __future__ import annotations

from pathlib import Path

from storage.datasets.dataset import Dataset
from storage.datasets.index import Indexed, kept_index
from storage.datasets.notes import in_words
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import DatasetSpec
from storage.errors import FloodlitError


class ChangedDatasetError(FloodlitError, ValueError):
    """A dataset is not any more what it was when its run was planned; the message is one line."""


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
        raise ValueError(f"{_key(spec)}: there is no {what} in {where}{besides}")
    return opened


def open_again(spec: DatasetSpec, bands: Bands, run: Path, fingerprint: str) -> Dataset:
    """Open the dataset of a run as a worker does, which must be the one for which the run was planned.

    Parameters
    ----------
    run
        The run's folder.
    fingerprint
        That of the dataset when the run was planned. It is not compared where it takes to read every item.

    Raises
    ------
    ChangedDatasetError
        If the dataset cannot be opened any more, or is another one.
    """
    advice = "; put back what was there and run the same job again, or give the job another store"
    try:
        opened = open_dataset(spec, bands, run)
        same = opened.reads_all or opened.fingerprint == fingerprint
    except ValueError as error:
        told = f"{error} (it could be opened when the job was planned){advice}"
        raise ChangedDatasetError(told) from error
    if not same:
        where = getattr(spec, "path", None) or spec.kind
        raise ChangedDatasetError(
            f"{_key(spec)}: {where} is not what it was when the job was planned: ids, labels, boxes, or the "
            f"sizes or contents of files are others{advice}"
        )
    return opened


def _key(spec: DatasetSpec) -> str:
    """The key that says where the dataset is."""
    return "dataset.path" if getattr(spec, "path", None) else "dataset.kind"
