"""What a training sees: crops of a dataset's images, in an order that its seed and a step's number decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from explainers.randomness import seed_of
from storage.datasets import Dataset, DatasetSpec, open_dataset
from storage.images import prepare_image

Drawn = tuple[int, int]  # an epoch, and a row of the dataset


class Crops(TorchDataset[Tensor]):
    """Images of a dataset at the classifier's size, (3, H, W) uint8.

    To train: cut at a random place of the image, whose short side is as the classifier's preprocessing
    resizes it, and flipped left to right half of the time where ``flip`` says so (P-TAME's augmentation).
    Place and flip depend on the seed, the epoch and the sample's id alone. Held-out images (epoch -1) are cut
    at the centre. In place of an image that cannot be read comes the next one that can.
    """

    def __init__(
        self, spec: DatasetSpec, geometry: Mapping[str, Any], size: tuple[int, int], seed: int, *, flip: bool
    ) -> None:
        self.spec, self.geometry, self.size, self.seed, self.flip = spec, dict(geometry), size, seed, flip

    @cached_property
    def dataset(self) -> Dataset:
        """Opened where it is used, which may be another process."""
        return open_dataset(self.spec)

    def __getitem__(self, drawn: Drawn) -> Tensor:
        epoch, row = drawn
        for other in range(len(self.dataset.samples)):
            index = (row + other) % len(self.dataset.samples)
            try:
                image = self.dataset.load(index)
            except Exception:  # whatever is wrong with it, another one is shown
                continue
            return torch.from_numpy(self._crop(image, epoch, self.dataset.samples[index].sample_id))
        raise ValueError("dataset: not one image can be read; see what its path holds")

    def _crop(self, image: Any, epoch: int, sample_id: str) -> NDArray[np.uint8]:
        height, width = self.size
        whole = {**self.geometry, "crop": None}
        pixels = prepare_image(image, [], **whole)[0]
        if epoch < 0 or pixels.shape[1] < height or pixels.shape[2] < width:
            pixels = prepare_image(image, [], **self.geometry)[0]
        if pixels.shape[1] < height or pixels.shape[2] < width:
            raise ValueError(f"dataset: {sample_id} is smaller than {height}x{width}; set model.resize")
        random = np.random.default_rng(seed_of(self.seed, "crop", epoch, sample_id))
        top = int(random.integers(pixels.shape[1] - height + 1)) if epoch >= 0 else 0
        left = int(random.integers(pixels.shape[2] - width + 1)) if epoch >= 0 else 0
        cut = pixels[:, top : top + height, left : left + width]
        flipped = epoch >= 0 and self.flip and random.random() < 0.5
        return np.ascontiguousarray(cut[:, :, ::-1] if flipped else cut)


@dataclass(frozen=True)
class Order:
    """Which images each step draws: every epoch a new permutation of the rows, without the incomplete batch.

    Attributes
    ----------
    total, apart
        Images of the dataset, and how many of them are held out, spread evenly.
    batch
        Images a step and process.
    processes
        That train together, each on its own part of a step's images.
    seed
        Of the permutations.
    """

    total: int
    apart: int
    batch: int
    processes: int
    seed: int

    @cached_property
    def held_out(self) -> list[int]:
        """Rows for validation."""
        return [i * self.total // self.apart for i in range(self.apart)]

    @cached_property
    def rows(self) -> list[int]:
        """Rows that train."""
        held_out = set(self.held_out)
        return [row for row in range(self.total) if row not in held_out]

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps an epoch."""
        return len(self.rows) // (self.batch * self.processes)

    def batches(self, first: int, steps: int, rank: int) -> Iterator[list[Drawn]]:
        """What the process of that rank draws in steps ``first`` to ``steps``."""
        permutation: NDArray[np.int64] | None = None
        known = -1
        for step in range(first, steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                generator = np.random.default_rng(seed_of(self.seed, "order", epoch))
                permutation, known = generator.permutation(len(self.rows)), epoch
            assert permutation is not None
            start = (place * self.processes + rank) * self.batch
            yield [(epoch, self.rows[i]) for i in permutation[start : start + self.batch]]


def loader(crops: Crops, batches: Iterator[list[Drawn]], workers: int) -> Iterator[Tensor]:
    """(B, 3, H, W) uint8 of each batch, decoded ahead by ``workers`` processes, or here by none."""
    loading: DataLoader[Tensor] = DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    yield from loading
