"""Plain numbers: series, or rows of a table."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from storage.datasets.dataset import Dataset, existing, of_key
from storage.datasets.reading import RGB, Bands
from storage.datasets.rows import of_rows
from storage.datasets.spec import DatasetSpec, register
from storage.datasets.tables import read_tensors
from storage.places import Place


@register
class Tensors(DatasetSpec):
    """Arrays of an .npz or .npy file, or columns of numbers of a CSV or Parquet file."""

    modality: ClassVar[Literal["tensor"]] = "tensor"

    kind: Literal["tensors"] = "tensors"
    path: Place = Field(description="the file")

    def open(self, bands: Bands = RGB) -> Dataset:  # noqa: ARG002
        """Open the numbers of an ``.npz``, ``.npy``, CSV or Parquet file."""
        path = existing(self.path, "file")
        with of_key("path"):
            return of_rows(path, read_tensors(path), "tensor", self.limit)
