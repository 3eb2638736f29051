"""Texts in a column of a table."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from storage.datasets.dataset import Dataset, existing, of_key
from storage.datasets.reading import RGB, Bands
from storage.datasets.rows import of_rows
from storage.datasets.spec import DatasetSpec, register
from storage.datasets.tables import read_texts
from storage.places import Place


@register
class Text(DatasetSpec):
    """Texts in a column of a CSV or Parquet file."""

    modality: ClassVar[Literal["text"]] = "text"

    kind: Literal["text"] = "text"
    path: Place = Field(description="the file")
    column: str | None = Field(
        None, description='name of the column that holds the texts; by default "text"', min_length=1
    )

    def open(self, bands: Bands = RGB) -> Dataset:  # noqa: ARG002
        """Open the texts in a column of a CSV or Parquet file."""
        path = existing(self.path, "file")
        with of_key("path"):
            return of_rows(path, read_texts(path, self.column or "text"), "text", self.limit)
