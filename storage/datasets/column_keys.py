"""The keys of kinds whose samples are the rows of a table, or the members of an archive, with named parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from storage.datasets.reading import Bands, Reading
from storage.datasets.spec import ImageFilesSpec


class ColumnKeys(ImageFilesSpec):
    """The keys that name where images, labels, boxes and ids are.

    What no key names is looked for by :mod:`storage.datasets.column_choice`.
    """

    image: str | None = Field(
        None, min_length=1, description="column of the encoded images; by default found by type and name"
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="column of the label, whole numbers or names of classes; by default found by its name",
    )
    labels: str | None = Field(
        None, min_length=1, description="column of lists of labels, in place of label; by default likewise"
    )
    boxes: str | None = Field(
        None,
        min_length=1,
        description="column of the boxes, lists of four numbers, e.g. objects.bbox; by default the columns "
        "xmin, ymin, xmax and ymax, or one called boxes, bbox or bboxes where box_format is set",
    )
    box_labels: str | None = Field(
        None,
        min_length=1,
        description="column of the class of each box, e.g. objects.category; by default category, label, "
        "class and the like where it lies beside the boxes inside another column",
    )
    box_format: Literal["xyxy", "xywh"] | None = Field(
        None,
        description="what the four numbers of a box are: xyxy: xmin, ymin, xmax, ymax; xywh: xmin, ymin, "
        "width, height",
    )
    box_unit: Literal["pixels", "relative"] | None = Field(
        None,
        description="unit of the boxes; relative: shares of the width and the height of the image; by "
        "default pixels, and boxes within 0..1 are refused until the job says what they are",
    )
    id: str | None = Field(
        None,
        min_length=1,
        description="column of the samples' ids; by default id, image_id, sample_id or __key__, else ids "
        "are the numbers of the rows",
    )

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.label is not None and self.labels is not None:
            raise ValueError("label and labels exclude each other; name the column of one label or of lists")
        if self.boxes is not None and self.box_format is None:
            raise ValueError('boxes needs the key box_format: "xyxy" or "xywh"')
        return self

    def reading(self, bands: Bands) -> Reading:
        """How the encoded images are read."""
        return replace(super().reading(bands), relative_boxes=self.box_unit == "relative")
