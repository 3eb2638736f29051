"""COCO, with its labels, boxes and masks by class."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field

from storage.datasets.coco_file import Described, digest, masks_of, read_coco
from storage.datasets.dataset import Dataset, Mask, Sample, existing, spread
from storage.datasets.image_files import of_files
from storage.datasets.notes import Notes
from storage.datasets.published import PublishedSpec
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import register
from storage.places import Place


@register
class Coco(PublishedSpec):
    """Images of COCO, each of which may have several labels; boxes and masks count for their class."""

    kind: Literal["coco"] = "coco"
    path: Place = Field(description="COCO's file of instances, e.g. annotations/instances_val2017.json")
    images: Place = Field(description="the folder of the images, e.g. val2017")

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open the images of COCO in the order of their ids; classes are numbered in that of their ids."""
        if find_spec("pycocotools") is None:
            raise ValueError("dataset.kind: coco needs an extra: pip install 'floodlit[coco]'")
        root = existing(self.images, "folder", "images")
        found = read_coco(existing(self.path, "file"), lambda images: spread(images, self.limit))
        samples = [_sample(image, root) for image in found.images]
        twice = len(samples) - len({sample.sample_id for sample in samples})
        if twice:
            raise ValueError(f"dataset.path: {self.path} lists {twice} files more than once")
        crowds = sum(each.crowd for image in found.images for each in image.objects)
        counts = {"boxes of crowds": crowds, "annotations of images that are not listed": found.lost}
        left_out = {what: count for what, count in counts.items() if count}
        opened = of_files(
            root,
            samples,
            found.classes,
            self.reading(bands),
            left_out=left_out,
            published=found.published,
            more=lambda: [digest(found.images)],
        )
        if not any(each.segmentation for image in found.images for each in image.objects):
            return opened

        def masks(index: int, _: Notes) -> Mask | None:
            labels = samples[index].labels
            return masks_of(found.images[index], labels) if labels else None

        return replace(opened, masks=masks, masks_by_label=True)


def _sample(image: Described, root: Path) -> Sample:
    """Describe an image; the classes of crowds are labels too."""
    single = [each for each in image.objects if not each.crowd]
    return Sample(
        image.file,
        str(root / image.file),
        boxes=tuple(each.box for each in single),
        labels=tuple(sorted({each.label for each in image.objects})),
        box_labels=tuple(each.label for each in single),
        frame=image.size if single else None,
    )
