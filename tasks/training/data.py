"""Training data: crops of a dataset's images, in an order that depends on the seed and the step alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from explainers.numerics.randomness import seed_of
from storage.datasets.dataset import Dataset
from storage.datasets.geometry import prepare_image
from storage.datasets.opening import open_dataset
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import DatasetSpec
from storage.errors import FloodlitError, one_line
from tasks.signals import kept_from_children

Drawn = tuple[int, int]  # an epoch (-1 for validation) and a row of the dataset


class UnusableImagesError(FloodlitError, ValueError):
    """Too few images of a dataset can be used; the message is one line with the problem of one of them."""


class Crops(TorchDataset[tuple[Tensor, str]]):
    """Images of a dataset at the input size of the classifier, by epoch and row.

    An item is the pixels, (C, H, W) as a run stores them, and the problem with the image, or "" if there is
    none.

    A training image is resized as in the classifier's preprocessing and cut at a random place; with ``flip``,
    half of the images are flipped left to right (P-TAME's augmentation). The place and the flip depend on the
    seed, the epoch and the sample's id alone. Held-out images have epoch -1 and are cut at the centre.

    An image that cannot be read or is too small is replaced by the next usable one: a training image by a
    training image, a held-out image by a held-out image.

    Parameters
    ----------
    spec
        The dataset.
    geometry
        Keyword arguments of :func:`storage.datasets.geometry.prepare_image`.
    size
        (H, W) of the classifier's inputs.
    order
        Which rows train and which are held out, and the seed.
    flip
        Whether to flip training images.
    bands
        What the values of the images become.
    folder
        The folder of the training, which may hold what a pass over the dataset's files found.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        geometry: Mapping[str, Any],
        size: tuple[int, int],
        order: Order,
        *,
        flip: bool,
        bands: Bands = RGB,
        folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.spec, self.bands, self.geometry = spec, bands, dict(geometry)
        self.size, self.order, self.flip = size, order, flip

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset, opened on first use, because these crops may be sent to another process before."""
        return open_dataset(self.spec, self.bands, self.folder)

    def __getitem__(self, drawn: Drawn) -> tuple[Tensor, str]:
        epoch, row = drawn
        rows = self.order.held_out if epoch < 0 else self.order.rows
        first, problem = bisect_left(rows, row), ""
        for other in range(len(rows)):
            index = rows[(first + other) % len(rows)]
            sample_id = self.dataset.samples[index].sample_id
            try:
                pixels = self._crop(self.dataset.load(index), epoch, sample_id)
            except Exception as error:  # whatever the problem is, another image replaces this one
                problem = problem or f"{sample_id}: {one_line(error)}"
                continue
            return torch.from_numpy(pixels), problem
        use = "are held out" if epoch < 0 else "train"
        raise UnusableImagesError(
            f"dataset: none of the images that {use} can be used, e.g. {problem}; check the files in "
            "dataset.path"
        )

    def _crop(self, image: Any, epoch: int, sample_id: str) -> NDArray[Any]:
        height, width = self.size
        whole = {**self.geometry, "crop": None}
        pixels = prepare_image(image, [], **whole)[0]
        # Held-out images take the centre crop of the preprocessing, which also pads images that are small.
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
    """Which images each step draws: a new permutation of the rows per epoch, without an incomplete last step.

    Attributes
    ----------
    total
        Images of the dataset.
    apart
        How many of them are held out for validation; they are spread evenly over the dataset.
    batch
        Images per step and process.
    processes
        How many processes train together, each on its own part of a step's images.
    seed
        Seed of the permutations.
    """

    total: int
    apart: int
    batch: int
    processes: int
    seed: int

    @cached_property
    def held_out(self) -> list[int]:
        """The rows that are held out for validation."""
        return [i * self.total // self.apart for i in range(self.apart)]

    @cached_property
    def rows(self) -> list[int]:
        """The rows that are trained on."""
        held_out = set(self.held_out)
        return [row for row in range(self.total) if row not in held_out]

    @property
    def steps_per_epoch(self) -> int:
        """Complete steps per epoch."""
        return len(self.rows) // (self.batch * self.processes)

    def batches(self, first: int, steps: int, rank: int) -> Iterator[list[Drawn]]:
        """Yield what the process of this rank draws in each of the steps ``first`` to ``steps`` - 1.

        A step draws the same images wherever the training was resumed.
        """
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
    """Yield the pixels of each batch and the problems with images that were replaced.

    Close the generator to end the worker processes.

    Parameters
    ----------
    crops
        The images.
    batches
        The epochs and rows of each batch.
    workers
        How many processes decode ahead. 0: this process decodes.

    Yields
    ------
    pixels
        (B, C, H, W), as a run stores them.
    problems
        One line per replaced image.
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
        # PyTorch puts a worker's traceback before the message. Only the message is kept.
        said = str(error).rstrip().rpartition(f"{UnusableImagesError.__name__}: ")[2]
        raise UnusableImagesError(said) from error
    finally:
        # At exit, Python would send SIGTERM to workers that are left, which block it, and wait for them.
        if isinstance(drawn, _MultiProcessingDataLoaderIter):
            drawn._shutdown_workers()
