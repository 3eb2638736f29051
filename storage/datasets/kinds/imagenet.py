"""ImageNet-1k, with the labels, boxes and masks that are published for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import ClassVar, Literal

from pydantic import Field

from storage.datasets.dataset import Dataset, Sample, existing, spread
from storage.datasets.folders import image_names
from storage.datasets.formats import is_hidden
from storage.datasets.image_files import of_files
from storage.datasets.imagenet_boxes import boxes_of
from storage.datasets.imagenet_labels import SYNSET, check_first, class_names, class_of, labels_of, stem
from storage.datasets.imagenet_masks import masks_of
from storage.datasets.published import PublishedSpec
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import register
from storage.places import Place, addresses, folders_in


@register
class ImageNet(PublishedSpec):
    """Images of ImageNet-1k in class folders, or those of the validation set in one folder."""

    scanned: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["imagenet"] = "imagenet"
    path: Place = Field(
        description="the folder of the class folders (n01440764, ...), or of the validation images "
        "(ILSVRC2012_val_00000001.JPEG, ...)"
    )
    labels: Place | None = Field(
        None,
        description="the classes of validation images in one folder: the development kit's "
        "ILSVRC2012_validation_ground_truth.txt, Kaggle's LOC_val_solution.csv, or lines of a file and its "
        "class, a synset or a number from 0 to 999 in torchvision's order",
    )
    synsets: Place | None = Field(
        None,
        description="the development kit's meta.mat, or lines of a synset and its number from 1 to 1000; "
        "needed for the kit's ground truth, whose numbers are not torchvision's",
    )
    boxes: Place | None = Field(
        None,
        description="localization.txt of the WSOL evaluation with its image_sizes.txt beside it, Kaggle's "
        "LOC_val_solution.csv, or the folder of ImageNet's XML files; boxes of other classes than the "
        "image's do not count",
    )
    masks: Place | None = Field(
        None, description="ImageNet-S's folder of masks, e.g. validation-segmentation, with all its classes"
    )

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open images of ImageNet-1k; classes are numbered as by torchvision and timm."""
        root = existing(self.path, "folder")
        images, left_out = image_names(root)
        names = spread(images, self.limit)
        labels = self._labels(root, names)
        samples = list(map(Sample, names, addresses(root, names), labels))
        if not {self.boxes, self.masks, self.labels} <= {None}:
            _check_names(names)
        if self.boxes is not None and names:
            located = boxes_of(self.boxes, names, labels)
            samples = [
                replace(sample, boxes=tuple(each.boxes), frame=each.size if each.boxes else None)
                for sample, each in zip(samples, located, strict=True)
            ]
            if others := sum(each.others for each in located):
                left_out["boxes of other classes than their image's"] = others
        masks = None
        if self.masks is not None and names:
            masks = masks_of(existing(self.masks, "folder", "masks"), names)
        return of_files(root, samples, class_names(), self.reading(bands), masks, left_out, published=True)

    def _labels(self, root: Path, names: Sequence[str]) -> list[int]:
        """Return the class of each image."""
        folders = [name for name in folders_in(root) if not is_hidden(PurePath(name))]
        loose = next((name for name in names if "/" not in name), None)
        if folders and loose is not None:
            raise ValueError(f"dataset.path: {root / loose} lies beside folders; move it into one")
        if not folders:
            if self.labels is None:
                raise ValueError(
                    f"dataset.labels: the images of {root} are in no class folders; name the file of their "
                    "classes, e.g. LOC_val_solution.csv"
                )
            labels = labels_of(existing(self.labels, "file", "labels"), self.synsets, names)
            check_first(names, labels, f"dataset.labels: {self.labels}")
            return labels
        needless = "labels" if self.labels is not None else "synsets" if self.synsets is not None else None
        if needless is not None:
            raise ValueError(f"dataset.{needless}: the class folders of {root} are the classes; leave it out")
        for folder in folders:
            if not SYNSET.fullmatch(folder):
                raise ValueError(
                    f"dataset.path: the folder {folder} of {root} is no class of ImageNet, e.g. n01440764; "
                    'give the folder of the class folders, or use kind = "folder"'
                )
        classes = {name: class_of(name, f"dataset.path: the folder {name} of {root}") for name in folders}
        labels = [classes[name.split("/", 1)[0]] for name in names]
        check_first(names, labels, f"dataset.path: {root}")
        return labels


def _check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two images have one name, by which labels, boxes and masks are found."""
    first, count = next(iter(Counter(map(stem, names)).most_common(1)), ("", 0))
    if count > 1:
        raise ValueError(f"dataset.path: {count} images are called {first}; remove all but one")
