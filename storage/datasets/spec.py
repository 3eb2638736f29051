"""The job's table ``[dataset]``."""

from __future__ import annotations

from typing import Annotated, Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from storage.datasets.reading import Reading
from storage.places import Place

DRAWN = 1_000_000  # most images of the kind digits
_FILES = ("exif", "background", "range", "depth")  # keys of datasets of image files
# The required and the optional keys of each kind, besides limit and numbering.
_KEYS = {
    "folder": (("path",), _FILES),
    "csv": (("path",), ("images", "boxes", "mask_values", "mask_ignore", *_FILES)),
    "torchvision": (("path", "name"), ("split",)),
    "digits": ((), ("split", "seed")),
    "text": (("path",), ("column",)),
    "tensors": (("path",), ()),
}


_Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
_MaskValue = Annotated[int, Field(ge=0, le=2**31 - 1)]
# Lists in the job file become tuples, since the table must be hashable.
_Range = Annotated[tuple[_Number, _Number], Field(strict=False)]
_MaskValues = Annotated[tuple[_MaskValue, ...], Field(strict=False, min_length=1)]


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
    boxes: Literal["pixels", "relative"] | None = Field(
        None,
        description="csv: unit of the boxes; relative: shares of the width and the height of the image; by "
        "default pixels, and boxes within 0..1 are refused until the job says what they are",
    )
    mask_values: _MaskValues | None = Field(
        None,
        description="csv: values of a mask that are the object, grey values or the indices of a file with a "
        "palette; by default every value but 0, or where the file is not transparent",
    )
    mask_ignore: _MaskValues | None = Field(
        None,
        description="csv: values of a mask that are neither object nor background, e.g. [255]; metrics leave "
        "these pixels out",
    )
    exif: Literal["turn", "ignore"] | None = Field(
        None,
        description="folder and csv: turn: images and masks are turned upright as their EXIF orientation "
        "says, and boxes are in pixels of the upright image (default); ignore: they are taken as stored",
    )
    background: str | None = Field(
        None,
        description='folder and csv: colour behind transparent pixels, a name or "#rrggbb"; by default '
        '"white"',
    )
    range: _Number | _Range | None = Field(
        None,
        description="folder and csv: the value that is white, or [black, white], in files with more than 8 "
        "bits per value that are grey or read as bands, e.g. 4095; by default 65535 for 16 bits and 1 for "
        "floats read as bands; other files are not read",
    )
    depth: Literal[8, 16, 32] | None = Field(
        None,
        description="folder and csv: bits per value that inputs keep; 32: floats. By default 8 for a model "
        "of three channels, and for others those of the first image that can be read",
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
        for key in sorted(type(self).model_fields.keys() - {"kind", "limit", "numbering"}):
            given = getattr(self, key) is not None
            if key in needed and not given:
                raise ValueError(f'kind = "{self.kind}" needs the key {key}')
            if given and key not in needed + optional:
                known = ", ".join([*needed, *optional, "limit", "numbering"])
                raise ValueError(f'kind = "{self.kind}" does not take the key {key}; it takes {known}')
        if self.kind == "digits" and self.limit is not None and self.limit > DRAWN:
            raise ValueError(f"limit: at most {DRAWN:,} images are drawn, not {self.limit:,}")
        return self

    @field_validator("background")
    @classmethod
    def _background_is_a_colour(cls, value: str | None) -> str | None:
        if value is not None:
            _colour(value)
        return value

    @field_validator("range")
    @classmethod
    def _range_is_not_empty(
        cls, value: float | tuple[float, float] | None
    ) -> float | tuple[float, float] | None:
        if value is not None and _limits(value)[0] >= _limits(value)[1]:
            raise ValueError("black must be less than white, and a single number is white and more than 0")
        return value

    @model_validator(mode="after")
    def _mask_values_differ(self) -> DatasetSpec:
        both = set(self.mask_values or ()) & set(self.mask_ignore or ())
        if both:
            raise ValueError(f"mask_values and mask_ignore both hold {min(both)}; name it once")
        return self

    @property
    def reading(self) -> Reading:
        """How the image files and masks of the dataset are read."""
        return Reading(
            exif=self.exif or "turn",
            background=_colour(self.background or "white"),
            limits=None if self.range is None else _limits(self.range),
            relative_boxes=self.boxes == "relative",
            mask_values=self.mask_values,
            mask_ignore=self.mask_ignore or (),
        )


def _colour(name: str) -> tuple[int, int, int]:
    """Return a colour as (red, green, blue); raise ValueError if there is no such colour."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ValueError(f'{name!r} is no colour; write a name, e.g. "white", or "#rrggbb"') from error
    return red, green, blue


def _limits(value: float | tuple[float, float]) -> tuple[float, float]:
    """Return the values that are black and white."""
    return value if isinstance(value, tuple) else (0.0, value)
