"""Images of a dataset that Hugging Face's library reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from storage.datasets.column_choice import choose, holders
from storage.datasets.column_facts import bytes_in, facts_in, of_encoded
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.dataset import Dataset, existing
from storage.datasets.decoding import contents
from storage.datasets.hugging_face import EncodedImages, Source, columns_of, open_split
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import register
from storage.places import Place, is_remote


@register
class HuggingFace(ColumnKeys):
    """Images of a dataset that Hugging Face's library of datasets reads: a repository or a folder.

    A folder may be one that ``save_to_disk`` wrote, one of Parquet files, one of class folders, or one of
    images with ``metadata.csv`` or ``metadata.jsonl``. Images are decoded as files are, and not by the
    library.
    """

    scanned: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["huggingface"] = "huggingface"
    name: str | None = Field(
        None,
        min_length=1,
        description="repository, e.g. uoft-cs/cifar10, from the local cache or else downloaded",
    )
    path: Place | None = Field(None, description="the folder, on this machine, in place of name")
    subset: str | None = Field(
        None, min_length=1, description="subset (configuration) of the dataset, if it has several"
    )
    split: str | None = Field(
        None, min_length=1, description='split of the dataset, e.g. "test", if it has several'
    )
    revision: str | None = Field(
        None, min_length=1, description="version of a repository: a commit, a tag or a branch"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.path is None):
            raise ValueError('kind = "huggingface" needs the key name (a repository) or path (a folder)')
        if self.revision is not None and self.name is None:
            raise ValueError("revision is for a repository (name), not for a folder")
        return self

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open one split; the columns besides the images are read, and no image is decoded."""
        source = self._source()
        data, split = open_split(source)
        schema = data.features.arrow_schema
        choice = choose(schema, self, source.where)
        images = EncodedImages(data, choice.image)
        called = "/".join(part for part in (Path(source.where).name, source.subset, split) if part)

        def place(row: int) -> str:
            return f"{called}#{row:06d}"

        def origin(rows: Sequence[int]) -> list[Any]:
            sizes = images.sizes()
            return [sizes[row] for row in rows]

        table = columns_of(data, holders(schema, choice.facts))
        facts = facts_in(table, choice, self, source.where, place)
        if self.split is None and split:
            facts = replace(facts, told=f"split {split}, {facts.told}")
        if self.name is None and data.info.builder_name == "imagefolder":  # numbers sorted names
            facts = replace(facts, declared=False)
        return of_encoded(facts, lambda row: bytes_in(images.cell(row), _file), place, origin, self, bands)

    def _source(self) -> Source:
        if self.path is None:
            return Source("name", str(self.name), self.subset, self.split, self.revision)
        if is_remote(self.path):
            raise ValueError("dataset.path: the library datasets reads folders of this machine, not S3")
        return Source("path", str(existing(self.path, "folder")), self.subset, self.split)


def _file(path: str) -> bytes:
    """The contents of an image that is in a file of its own, as those of class folders are."""
    return contents(Path(path))
