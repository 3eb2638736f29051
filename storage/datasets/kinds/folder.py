"""A folder of class folders, or of images without labels."""

from __future__ import annotations

from pathlib import PurePath
from typing import ClassVar, Literal

from pydantic import Field

from storage.datasets.dataset import Dataset, Sample, existing, spread
from storage.datasets.folders import image_names
from storage.datasets.formats import is_hidden
from storage.datasets.image_files import of_files, printable
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import ImageFilesSpec, register
from storage.places import Place, folders_in


@register
class Folder(ImageFilesSpec):
    """Images in class folders, or images without labels in one folder."""

    scanned: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["folder"] = "folder"
    path: Place = Field(description="the folder")

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open a folder of class folders, or a folder of images without labels.

        Classes are numbered in the sorted order of the folders, as by torchvision's ImageFolder; a folder
        without images has a number too. Hidden files and folders and ``__MACOSX`` are left out.
        """
        root = existing(self.path, "folder")
        classes = [name for name in folders_in(root) if not is_hidden(PurePath(name))]
        images, left_out = image_names(root)
        loose = [name for name in images if "/" not in name]
        if classes and loose:
            raise ValueError(f"dataset: {root / loose[0]} lies beside class folders; move it into one")
        index = {name: label for label, name in enumerate(classes)}
        folders = [name.split("/", 1)[0] for name in images]
        samples = [
            Sample(name, str(root / name), index.get(folder))
            for name, folder in zip(images, folders, strict=True)
            if folder in index or "/" not in name
        ]
        if empty := len(index.keys() - set(folders)):
            left_out["class folders without an image"] = empty
        names = [printable(name) for name in classes]
        chosen = spread(samples, self.limit)
        return of_files(root, chosen, names, self.reading(bands), left_out=left_out)
