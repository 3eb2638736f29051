"""The images of a CSV listing."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.datasets.boxes import check_unit
from storage.datasets.dataset import Dataset, Sample, existing, of_key, spread
from storage.datasets.image_files import MaskFiles, of_files
from storage.datasets.listing import read_listing
from storage.datasets.reading import RGB, Bands, Reading
from storage.datasets.spec import DicomWindow, ImageFilesSpec, register
from storage.places import Place, addresses

_MaskValue = Annotated[int, Field(ge=0, le=2**31 - 1)]
_MaskValues = Annotated[tuple[_MaskValue, ...], Field(strict=False, min_length=1)]


@register
class CsvListing(ImageFilesSpec):
    """Images of a CSV listing, with labels, boxes and masks."""

    kind: Literal["csv"] = "csv"
    path: Place = Field(description="the listing")
    images: Place | None = Field(
        None, description="folder of the image files; by default the folder of the listing"
    )
    boxes: Literal["pixels", "relative"] | None = Field(
        None,
        description="unit of the boxes; relative: shares of the width and the height of the image; by "
        "default pixels, and boxes within 0..1 are refused until the job says what they are",
    )
    mask_values: _MaskValues | None = Field(
        None,
        description="values of a mask that are the object, grey values or the indices of a file with a "
        "palette; by default every value but 0, or where the file is not transparent",
    )
    mask_ignore: _MaskValues | None = Field(
        None,
        description="values of a mask that are neither object nor background, e.g. [255]; metrics leave "
        "these pixels out",
    )

    window: DicomWindow | None = Field(
        None, description="grey values that are shown of DICOM files, as for kind dicom"
    )

    @model_validator(mode="after")
    def _mask_values_differ(self) -> CsvListing:
        both = set(self.mask_values or ()) & set(self.mask_ignore or ())
        if both:
            raise ValueError(f"mask_values and mask_ignore both hold {min(both)}; name it once")
        return self

    def reading(self, bands: Bands) -> Reading:
        """How the image files and masks of the listing are read."""
        return replace(
            super().reading(bands),
            relative_boxes=self.boxes == "relative",
            window=self.window or "file",
            mask_values=self.mask_values,
            mask_ignore=self.mask_ignore or (),
        )

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open the images of a CSV listing, see :mod:`storage.datasets.listing`."""
        path = existing(self.path, "file")
        images = existing(self.images or path.parent, "folder", "images")
        with of_key("path"):
            listing = read_listing(path)
        entries = listing.entries
        check_unit(path, [(e.file, e.boxes) for e in entries], self.boxes)
        samples = [
            Sample(
                e.file,
                uri,
                None if listing.several else e.labels[0],
                e.boxes,
                e.labels if listing.several else (),
                e.box_labels,
            )
            for e, uri in zip(entries, addresses(images, (e.file for e in entries)), strict=True)
        ]
        masks = MaskFiles({e.file: e.mask for e in entries if e.mask is not None})
        return of_files(images, spread(samples, self.limit), listing.classes, self.reading(bands), masks)
