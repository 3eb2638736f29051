"""Image files of a published set, whose boxes and masks are in the pixels as the files store them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from storage.datasets.reading import Bands, Reading
from storage.datasets.spec import ImageFilesSpec


class PublishedSpec(ImageFilesSpec):
    """The keys of a published set of image files."""

    exif: Literal["ignore"] | None = Field(
        None,
        description="images are taken as stored, as the set's boxes, masks and published results take them; "
        "there is no other choice",
    )

    def reading(self, bands: Bands) -> Reading:
        """How the image files are read."""
        return replace(super().reading(bands), exif="ignore")
