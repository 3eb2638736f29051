"""The demo's digits; an image is drawn when it is loaded."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from storage.datasets import digits
from storage.datasets.bands import as_image
from storage.datasets.dataset import Dataset, Drawn, Sample
from storage.datasets.reading import RGB, Bands, Reading
from storage.datasets.spec import DatasetSpec, register

COUNT = 1000  # number of images, unless the job has a limit
MOST = 1_000_000  # most images that are drawn


@register
class Digits(DatasetSpec):
    """The images of the demo, drawn from handwritten digits, with their boxes and masks."""

    kind: Literal["digits"] = "digits"
    split: str | None = Field(None, description='split of the set, "train" or "test", by default "test"')
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="seed of the images, by default 0; each seed draws other images",
    )
    limit: int | None = Field(
        None, ge=1, le=100_000_000, description="number of images, by default 1000, at most 1,000,000"
    )

    @field_validator("limit")
    @classmethod
    def _limit_can_be_drawn(cls, value: int | None) -> int | None:
        if value is not None and value > MOST:
            raise ValueError(f"at most {MOST:,} images are drawn, not {value:,}")
        return value

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open the images of a split and a seed, with the label, box and mask of each digit."""
        split, seed, count = self.split or "test", self.seed or 0, self.limit or COUNT
        if split not in digits.SPLITS:
            raise ValueError(
                f"dataset.split: digits have the splits {' and '.join(digits.SPLITS)}, not {split}"
            )
        how = Reading(bands=bands)
        # Label, box, mask and pixels of an image are read one after another, and all come from one drawing.
        draw = lru_cache(maxsize=64)(lambda index: digits.sample(split, index, seed))

        def sample(index: int) -> Sample:
            uri = f"digits:{split}/{seed}/{index:06d}"
            return Sample(f"{split}/{index:06d}", uri, draw(index).label, (draw(index).box,))

        def print_of() -> list[Any]:
            # The images depend on these numbers and on the versions of libraries, which a few images reveal.
            pixels = [
                hashlib.sha256(draw(index).image.tobytes()).hexdigest() for index in range(min(8, count))
            ]
            return [split, seed, count, pixels]

        return Dataset(
            Drawn(count, sample),
            list(digits.CLASSES),
            lambda index, notes: as_image(Image.fromarray(draw(index).image), how, notes),
            print_of,
            masks=lambda index, _: Image.fromarray((draw(index).mask != 0).astype(np.uint8)),
            published=True,
        )
