"""The job's table ``[dataset]``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.places import Place

DRAWN = 1_000_000  # most images of the kind digits
# The required and the optional keys of each kind, besides limit and numbering.
_KEYS = {
    "folder": (("path",), ()),
    "csv": (("path",), ("images",)),
    "torchvision": (("path", "name"), ("split",)),
    "digits": ((), ("split", "seed")),
    "text": (("path",), ("column",)),
    "tensors": (("path",), ()),
}


class DatasetSpec(BaseModel):
    """The job's table ``[dataset]``: the kind of a dataset, its place and the part that is used."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["folder", "csv", "torchvision", "digits", "text", "tensors"] = Field(
        description="folder: images in class folders, or images without labels in one folder; csv: images of "
        "a CSV listing; torchvision: images of one of its sets; digits: the demo's images; text: a column of "
        "a CSV or Parquet file; tensors: arrays, or columns of numbers"
    )
    path: Place | None = Field(
        None,
        description="the folder or the file; for torchvision the folder of its sets, which are downloaded if "
        "they are missing; not for digits",
    )
    images: Place | None = Field(
        None, description="csv: folder of the image files; by default the folder of the listing"
    )
    column: str | None = Field(
        None, description='text: name of the column that holds the texts; by default "text"', min_length=1
    )
    name: str | None = Field(None, description="torchvision: name of the set, e.g. CIFAR10")
    split: str | None = Field(
        None,
        description='torchvision and digits: split of the set, e.g. "train"; for digits by default "test"',
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="digits: seed of the images, by default 0; each seed draws other images",
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="largest number of samples that are used, spread evenly over the set; for digits the "
        "number of images, by default 1000, at most 1,000,000",
    )

    numbering: Literal["model"] | None = Field(
        None,
        description='"model" says that the dataset numbers its classes (folders and names of labels in '
        "sorted order) as the model does; by default they are matched with the model's by synset or name",
    )

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> DatasetSpec:
        # A key that a kind does not use is an error, since it may be a mistake for another kind.
        needed, optional = _KEYS[self.kind]
        for key in ("path", "images", "column", "name", "split", "seed"):
            given = getattr(self, key) is not None
            if key in needed and not given:
                raise ValueError(f'kind = "{self.kind}" needs the key {key}')
            if given and key not in needed + optional:
                known = ", ".join([*needed, *optional, "limit", "numbering"])
                raise ValueError(f'kind = "{self.kind}" does not take the key {key}; it takes {known}')
        if self.kind == "digits" and self.limit is not None and self.limit > DRAWN:
            raise ValueError(f"limit: at most {DRAWN:,} images are drawn, not {self.limit:,}")
        return self
