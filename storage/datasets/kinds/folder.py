"""A folder of class folders, or of images without labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from storage.datasets.class_folders import of_class_folders
from storage.datasets.dataset import Dataset, existing
from storage.datasets.folders import image_names
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import ImageFilesSpec, register
from storage.places import Place


@register
class Folder(ImageFilesSpec):
    """Images in class folders, or images without labels in one folder."""

    scanned: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["folder"] = "folder"
    path: Place = Field(description="the folder")

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open a folder of class folders, or a folder of images without labels."""
        root = existing(self.path, "folder")
        images, left_out = image_names(root)
        return of_class_folders(root, images, left_out, self.limit, self.reading(bands))
