"""COCO, with its labels, boxes and masks by class."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from storage.datasets.coco_file import Described, masks_of, read_coco
from storage.datasets.coco_index import CocoIndex, index_of
from storage.datasets.dataset import Dataset, Mask, Sample, existing, spread
from storage.datasets.image_files import of_files
from storage.datasets.index import with_state
from storage.datasets.notes import Notes
from storage.datasets.published import PublishedSpec
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import register
from storage.files import sha256_of_json
from storage.places import Place


@register
class Coco(PublishedSpec):
    """Images of COCO, each of which may have several labels; boxes and masks count for their class."""

    kind: Literal["coco"] = "coco"
    path: Place = Field(description="COCO's file of instances, e.g. annotations/instances_val2017.json")
    images: Place = Field(description="the folder of the images, e.g. val2017")

    def state_of_files(self) -> str:
        """The size and time of COCO's file, and how many of its images are read."""
        about = existing(self.path, "file").stat()
        return sha256_of_json([self.path.name, about.st_size, about.st_mtime, self.limit])

    def open(self, bands: Bands = RGB, found: pa.Table | None = None) -> Dataset:
        """Open the images of COCO in the order of their ids; classes are numbered in that of their ids."""
        if find_spec("pycocotools") is None:
            raise ValueError("dataset.kind: coco needs an extra: pip install 'floodlit[coco]'")
        root = existing(self.images, "folder", "images")
        table = self._table() if found is None else found
        index = CocoIndex(table)
        samples = [_sample(image, root) for image in index.images()]
        twice = len(samples) - len({sample.sample_id for sample in samples})
        if twice:
            raise ValueError(f"dataset.path: {self.path} lists {twice} files more than once")
        counts = {
            "boxes of crowds": index.crowds,
            "annotations of images that are not listed": index.lost,
        }
        opened = of_files(
            root,
            samples,
            index.classes,
            self.reading(bands),
            left_out={what: count for what, count in counts.items() if count},
            published=index.published,
            more=lambda: [index.digest],
        )

        def masks(row: int, _: Notes) -> Mask | None:
            labels = samples[row].labels
            return masks_of(index.image(row), labels) if labels else None

        if index.segmented:
            opened = replace(opened, masks=masks, masks_by_label=True)
        return replace(opened, index=table)

    def _table(self) -> pa.Table:
        """Read COCO's file."""
        found = read_coco(existing(self.path, "file"), lambda images: spread(images, self.limit))
        return with_state(index_of(found), self.state_of_files())


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
