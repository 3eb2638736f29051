"""What a pass over COCO's file found, as a table, so that workers need not parse the file again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from storage.datasets.coco_file import Annotated, CocoFile, Described
from storage.datasets.image_files import printable

_ABOUT = b"floodlit.coco"
_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        # One entry per object, and four numbers of a box: xmin, ymin, xmax, ymax.
        "labels": pa.list_(pa.int32()),
        "boxes": pa.list_(pa.float64()),
        "crowds": pa.list_(pa.bool_()),
        "segmentations": pa.large_list(pa.large_string()),  # JSON
    }
)


class CocoIndex:
    """The images of COCO's file, and their objects.

    Parameters
    ----------
    table
        What :func:`index_of` made.

    Attributes
    ----------
    classes, published, lost
        As for :class:`storage.datasets.coco_file.CocoFile`.
    digest
        Hexadecimal SHA-256 of all that the file says of the images.
    crowds
        The number of crowds.
    segmented
        Whether an object has a segmentation.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        about = json.loads(table.schema.metadata[_ABOUT])
        self.classes: list[str] = about["classes"]
        self.published: bool = about["published"]
        self.lost: int = about["lost"]
        self.digest: str = about["digest"]
        self.crowds: int = about["crowds"]
        self.segmented: bool = about["segmented"]

    def images(self) -> Iterator[Described]:
        """Yield every image in the order of their ids; their objects have no segmentations here."""
        plain = self._table.drop_columns("segmentations")
        for batch in plain.to_batches(max_chunksize=1024):
            yield from map(_described, batch.to_pylist())

    def image(self, row: int) -> Described:
        """Return an image with the segmentations of its objects."""
        return _described(self._table.slice(row, 1).to_pylist()[0])


def index_of(found: CocoFile) -> pa.Table:
    """Return a table with a row per image, from which :class:`CocoIndex` reads what the file says."""
    images = found.images
    columns = {
        "file": [printable(image.file) for image in images],
        "width": [image.size[0] for image in images],
        "height": [image.size[1] for image in images],
        "labels": [[each.label for each in image.objects] for image in images],
        "boxes": [[side for each in image.objects for side in each.box] for image in images],
        "crowds": [[each.crowd for each in image.objects] for image in images],
        "segmentations": [[_text(each.segmentation) for each in image.objects] for image in images],
    }
    about = {
        "classes": found.classes,
        "published": found.published,
        "lost": found.lost,
        "digest": digest(images),
        "crowds": sum(each.crowd for image in images for each in image.objects),
        "segmented": any(each.segmentation for image in images for each in image.objects),
    }
    table: pa.Table = pa.table(columns, _SCHEMA)
    return table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})


def _text(segmentation: Any) -> str | None:
    return None if segmentation is None else json.dumps(segmentation)


def _described(row: dict[str, Any]) -> Described:
    """Return an image as its row says."""
    sides = iter(row["boxes"])
    written = row.get("segmentations") or [None] * len(row["labels"])
    objects = [
        Annotated(label, box, crowd, None if text is None else json.loads(text))
        for label, box, crowd, text in zip(
            row["labels"], zip(sides, sides, sides, sides, strict=True), row["crowds"], written, strict=True
        )
    ]
    return Described(row["file"], (row["width"], row["height"]), objects)


def digest(images: Sequence[Described]) -> str:
    """Return the hexadecimal SHA-256 of what the file says of images, as the text of one JSON list."""
    found = hashlib.sha256(b"[")
    for number, image in enumerate(images):
        objects = [(each.label, each.box, each.crowd, each.segmentation) for each in image.objects]
        told = json.dumps((image.file, image.size, objects), sort_keys=True)
        found.update(b", " * (number > 0) + told.encode())
    found.update(b"]")
    return found.hexdigest()
