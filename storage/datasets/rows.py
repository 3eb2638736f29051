"""Datasets whose samples are the rows of one file: texts or plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from storage.datasets.dataset import Dataset, Drawn, Sample, known, spread
from storage.datasets.tables import Tensors, Texts


def of_rows(
    path: Path, table: Texts | Tensors, modality: Literal["text", "tensor"], limit: int | None
) -> Dataset:
    """Make a dataset whose samples are rows of one file.

    Parameters
    ----------
    path
        The file, for the samples' uri.
    table
        The rows of the file.
    modality
        Kind of the items.
    limit
        Largest number of rows that are used; None uses all.
    """
    chosen = spread(range(len(table)), limit)

    def sample(index: int) -> Sample:
        row = chosen[index]
        sample_id = f"{row:06d}" if table.ids is None else table.ids[row]
        return Sample(
            sample_id,
            f"{path.name}#{row:06d}",
            None if table.labels is None else table.labels[row],
            labels=() if table.several is None else tuple(table.several[row]),
        )

    samples = Drawn(len(chosen), sample)
    return Dataset(
        samples,
        table.classes,
        lambda index, _: table.load(chosen[index]),
        lambda: [*known(samples), table.features, table.digest(chosen)],
        modality,
        table.features,
    )
