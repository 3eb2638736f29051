"""What a training sees: crops of a dataset's images, in an order that its seed and a step's number decide."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from explainers.numerics.randomness import seed_of
from storage.datasets.geometry import prepare_image
from storage.datasets.opening import Dataset, DatasetSpec, open_dataset
from tasks.signals import kept_from_children

Drawn = tuple[int, int]  # an epoch, and a row of the dataset


class UnusableImagesError(ValueError):
    """A dataset of which too few images can be used, in one line that says what is wrong with one."""


class Crops(TorchDataset[tuple[Tensor, str]]):
    """Images of a dataset at the classifier's size, (3, H, W) uint8, and what was wrong with them, or "".

    To train: cut at a random place of the image, whose short side is as the classifier's preprocessing
    resizes it, and flipped left to right half of the time where ``flip`` says so (P-TAME's augmentation).
    Place and flip depend on the seed, the epoch and the sample's id alone. Held-out images (epoch -1) are cut
    at the centre. In place of an image that cannot be used, because it cannot be read or is too small, comes
    the next one that can of those that train, or of those held out.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        geometry: Mapping[str, Any],
        size: tuple[int, int],
        order: Order,
        *,
        flip: bool,
    ) -> None:
        self.spec, self.geometry, self.size, self.order, self.flip = spec, dict(geometry), size, order, flip

    @cached_property
    def dataset(self) -> Dataset:
        """Opened where it is used, which may be another process."""
        return open_dataset(self.spec)

    def __getitem__(self, drawn: Drawn) -> tuple[Tensor, str]:
        epoch, row = drawn
        rows = self.order.held_out if epoch < 0 else self.order.rows
        first, problem = bisect_left(rows, row), ""
        for other in range(len(rows)):
            index = rows[(first + other) % len(rows)]
            sample_id = self.dataset.samples[index].sample_id
            try:
                pixels = self._crop(self.dataset.load(index), epoch, sample_id)
            except Exception as error:  # whatever is wrong with it, another one is shown
                said = " ".join(str(error).split()) or type(error).__name__
                problem = problem or f"{sample_id}: {said}"
                continue
            return torch.from_numpy(pixels), problem
        use = "are held out" if epoch < 0 else "train"
        raise UnusableImagesError(
            f"dataset: not one of the images that {use} can be used, e.g. {problem}; see what its path holds"
        )

    def _crop(self, image: Any, epoch: int, sample_id: str) -> NDArray[np.uint8]:
        height, width = self.size
        whole = {**self.geometry, "crop": None}
        pixels = prepare_image(image, [], **whole)[0]
        if epoch < 0 or pixels.shape[1] < height or pixels.shape[2] < width:
            pixels = prepare_image(image, [], **self.geometry)[0]
        if pixels.shape[1] < height or pixels.shape[2] < width:
            here = "x".join(map(str, pixels.shape[1:]))
            raise ValueError(f"{here} pixels are less than {height}x{width}; set model.resize")
        random = np.random.default_rng(seed_of(self.order.seed, "crop", epoch, sample_id))
        spare = pixels.shape[1] - height, pixels.shape[2] - width
        top, left = (int(random.integers(s + 1)) if epoch >= 0 else s // 2 for s in spare)
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


def loader(
    crops: Crops, batches: Iterator[list[Drawn]], workers: int
) -> Generator[tuple[Tensor, list[str]], None, None]:
    """(B, 3, H, W) uint8 of each batch, decoded ahead by ``workers`` processes, or here by none.

    Beside it what was wrong with images that others stand in for. Close it to end the workers.
    """
    loading: DataLoader[tuple[Tensor, str]] = DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    with kept_from_children():
        drawn = iter(loading)
    try:
        for pixels, problems in drawn:
            yield pixels, [problem for problem in problems if problem]
    except UnusableImagesError as error:
        # A worker's error tells where it was raised, and ends with what was said.
        said = str(error).rstrip().rpartition(f"{UnusableImagesError.__name__}: ")[2]
        raise UnusableImagesError(said) from error
    finally:
        # Those still there when Python exits would be sent a SIGTERM, which they do not take, and waited for.
        if isinstance(drawn, _MultiProcessingDataLoaderIter):
            drawn._shutdown_workers()
