"""What a pass over the large files of a dataset found, kept in the run so that no worker passes over them.

A kind that needs such a pass has the two methods of :class:`Indexed`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa

from storage.datasets.dataset import Dataset
from storage.datasets.reading import Bands
from storage.files import UnreadableError
from storage.parquet import opened, write_table

NAME = "dataset.parquet"
_STATE = b"floodlit.state"


@runtime_checkable
class Indexed(Protocol):
    """A kind of dataset whose samples are found in a pass over large files."""

    def state_of_files(self) -> str:
        """What the files are now, found without reading them; another text says that they changed."""

    def open(self, bands: Bands, found: pa.Table | None = None) -> Dataset:
        """Open the dataset from what an earlier pass found, or after a pass of its own.

        The dataset has the result of the pass as its ``index``.
        """


def kept_index(run: Path, state: str) -> pa.Table | None:
    """Return what an earlier pass over the same files found; None if the run has none."""
    try:
        index = _read(run)
    except UnreadableError:  # missing or damaged: another pass is made
        return None
    return index if state_of(index) == state else None


def is_whole(run: Path) -> bool:
    """Whether the index of a run can be read."""
    try:
        _read(run)
    except UnreadableError:
        return False
    return True


def _read(run: Path) -> pa.Table:
    with opened(run / NAME, checked=True) as file:
        return file.read()


def keep_index(run: Path, dataset: Dataset) -> None:
    """Write the index of a dataset into its run, unless it is there."""
    index: pa.Table | None = dataset.index
    if index is None or kept_index(run, state_of(index)) is not None:
        return
    write_table(index, run / NAME, checked=True)


def with_state(index: pa.Table, state: str) -> pa.Table:
    """Return an index that says to which state of the files it belongs."""
    return index.replace_schema_metadata({**(index.schema.metadata or {}), _STATE: state.encode()})


def state_of(index: pa.Table) -> str:
    """Return the state of the files to which an index belongs."""
    return (index.schema.metadata or {}).get(_STATE, b"").decode()
