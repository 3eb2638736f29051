"""PASCAL VOC, with its labels, boxes and masks by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from storage.datasets.annotations import Annotation, lines_of, read_annotations
from storage.datasets.dataset import Dataset, Sample, existing, spread
from storage.datasets.image_files import MaskFiles, of_files
from storage.datasets.masks import mask_values
from storage.datasets.published import PublishedSpec
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import register
from storage.files import UnreadableError
from storage.places import Place, files_under

# In the order of their numbers in the masks, which begin with 1.
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = 255  # the value of a mask on the borders of objects


@register
class Voc(PublishedSpec):
    """Images of PASCAL VOC, each of which may have several labels; boxes and masks count for their class."""

    kind: Literal["voc"] = "voc"
    path: Place = Field(description="the folder of a year, e.g. VOCdevkit/VOC2012")
    split: str = Field(
        description='a list of the year\'s ImageSets, e.g. "train", "val" or "trainval"',
        pattern=r"^[A-Za-z0-9]+$",
    )
    task: Literal["detection", "segmentation"] | None = Field(
        None,
        description="which images: segmentation takes the lists of ImageSets/Segmentation, whose images have "
        "masks; by default detection, the lists of ImageSets/Main",
    )
    difficult: Literal["keep"] | None = Field(
        None,
        description="keep: objects that are marked as difficult count as well; by default they give their "
        "image no label and no box, as in VOC's own evaluation",
    )

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open the images of a split; classes are numbered in the order of VOC's masks, from 0."""
        root = existing(self.path, "folder")
        segmented = self.task == "segmentation"
        names = spread(self._listed(root, "Segmentation" if segmented else "Main"), self.limit)
        samples: list[Sample] = []
        left_out: dict[str, int] = {}
        for name, annotation in zip(names, _annotations(root, names), strict=True):
            image = f"JPEGImages/{name}.jpg"
            samples.append(self._sample(image, root, annotation))
            if hard := sum(each.difficult for each in annotation.objects) * (self.difficult is None):
                left_out["difficult objects"] = left_out.get("difficult objects", 0) + hard
        masks = None
        if segmented and any(sample.labels for sample in samples):
            files = {
                sample.sample_id: f"SegmentationClass/{name}.png"
                for sample, name in zip(samples, names, strict=True)
                if sample.labels
            }
            masks = MaskFiles(files, read=_masks, by_label=True)
        return of_files(root, samples, list(CLASSES), self.reading(bands), masks, left_out, published=True)

    def _listed(self, root: Path, folder: str) -> list[str]:
        """Return the names of the images of the split."""
        lists = root / "ImageSets" / folder
        file = existing(lists, "folder") / f"{self.split}.txt"
        if not file.is_file():
            found = [Path(name).stem for name in files_under(lists) if name.endswith(".txt")]
            splits = ", ".join(name for name in found if "_" not in name)
            raise ValueError(f"dataset.split: {lists} has no list {self.split}; it has {splits}")
        names = [line.split()[0] for line in lines_of(file, "split")]
        if len(set(names)) < len(names):
            raise ValueError(f"dataset.split: {file} lists {len(names) - len(set(names))} images once more")
        return names

    def _sample(self, image: str, root: Path, annotation: Annotation) -> Sample:
        kept = [each for each in annotation.objects if self.difficult == "keep" or not each.difficult]
        labels = tuple(CLASSES.index(each.name) for each in kept)
        return Sample(
            image,
            str(root / image),
            boxes=tuple(each.box for each in kept),
            labels=tuple(sorted(set(labels))),
            box_labels=labels,
            frame=annotation.size if kept else None,
        )


def _annotations(root: Path, names: Sequence[str]) -> list[Annotation]:
    """Read the XML files of images.

    Raises
    ------
    ValueError
        If one is missing or is no annotation of VOC; the message is one line.
    """
    folder = existing(root / "Annotations", "folder")
    present = files_under(folder)
    lost = [name for name in names if f"{name}.xml" not in present]
    if lost:
        raise ValueError(
            f"dataset.split: {folder} has no annotation of {lost[0]}, nor of {len(lost) - 1} other images; "
            "the objects of some test sets were never published: take another split"
        )
    files = [f"{name}.xml" for name in names]
    found = []
    for file, annotation in zip(files, read_annotations(folder, files, "path", origin=1), strict=True):
        for each in annotation.objects:
            if each.name not in CLASSES:
                raise ValueError(
                    f"dataset.path: {folder / file}: {each.name[:80]!r} is none of the 20 classes of VOC"
                )
        found.append(annotation)
    return found


def _masks(image: Image.Image, sample: Sample, *_: Any) -> NDArray[np.uint8]:
    """Return the mask of each label of a sample, (labels, H, W); the borders of objects are ignored."""
    if image.mode not in {"P", "L"}:
        raise UnreadableError(
            f"has the mode {image.mode}; VOC's masks have a palette, or the same values in grey"
        )
    values = np.asarray(image)
    if ((values > len(CLASSES)) & (values != _VOID)).any():
        strange = values[(values > len(CLASSES)) & (values != _VOID)][0]
        raise UnreadableError(f"has the value {strange}, which is no class of VOC")
    own = np.array(sample.labels).reshape(-1, 1, 1) + 1
    return mask_values(values == own, values == _VOID)
