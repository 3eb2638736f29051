"""Reads a run for its exports: some samples at a time, with their inputs, maps and scores."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from explainers.numerics.batching import chunks
from storage.maps import read
from storage.records import Step
from storage.run import Run
from storage.samples import read_samples_of_shard
from storage.scores import read_shard_values
from tasks.metrics.preparation import prepare
from tasks.pictures.drawing import coloured, shown_bands

SAMPLES = 64  # read at a time
Values = dict[tuple[str, str], list[float | None]]


@dataclass(frozen=True)
class Part:
    """Some neighbouring samples of a run.

    Attributes
    ----------
    run
        The run.
    first
        Index of the first sample in the run.
    samples
        Their rows of the samples.
    values
        By explainer and column, the scores of the maps of the part's shard; None where there is no score.
    skip
        How many of the shard's samples come before the part.
    done
        The explainers whose maps of this shard were made.
    """

    run: Run
    first: int
    samples: list[dict[str, Any]]
    values: Values
    skip: int
    done: Set[str]

    @cached_property
    def inputs(self) -> NDArray[Any]:
        """(n, \\*input_shape) the inputs as the run stores them."""
        return read(self.run.inputs, self.first, self.first + len(self.samples))

    def maps(self, explainer: str) -> NDArray[Any]:
        """(n, k, \\*grid) raw maps, of k targets per sample; NaN where there is no map."""
        k, grid = self.run.targets_per_image, self.run.explainers[explainer].grid
        if explainer not in self.done:
            return np.full((len(self.samples), k, *grid), np.nan, np.float32)
        stop = self.first + len(self.samples)
        found = read(self.run.saliency(explainer) / "maps", self.first * k, stop * k)
        return found.reshape(-1, k, *grid)

    def scores(self, place: int, target: int = 0) -> dict[tuple[str, str], float | None]:
        """The scores of one sample's map for one of its targets, by explainer and column."""
        row = (self.skip + place) * self.run.targets_per_image + target
        return {key: values[row] for key, values in self.values.items()}

    @cached_property
    def pictures(self) -> list[bytes | None]:
        """The images as the network sees them, as PNG files; None for a sample that could not be read."""
        bands = shown_bands(self.run)
        return [
            png(coloured(values, bands)) if sample["status"] == "ok" else None
            for values, sample in zip(self.inputs, self.samples, strict=True)
        ]

    def map_pictures(self, explainer: str) -> list[list[bytes | None]]:
        """The maps as grey PNG files on the explainer's grid, a list per sample; None where there is no map.

        0 is what the metrics take as no evidence, and 255 the strongest: negative values are left out, and
        each map is scaled to its own range, as :data:`tasks.metrics.preparation.RECORD` says.
        """
        maps = self.maps(explainer)
        n, k, *grid = maps.shape
        prepared = prepare(torch.from_numpy(maps.reshape(n * k, *grid)).float(), tuple(grid))[0].numpy()
        made = [
            png(np.rint(255 * each).astype(np.uint8)) if np.isfinite(each).all() else None
            for each in prepared
        ]
        return [made[k * place : k * (place + 1)] for place in range(n)]


def each_part(run: Run, scored: bool = False) -> Iterator[Part]:
    """Yield the samples of a run in their order, at most :data:`SAMPLES` at a time.

    Parameters
    ----------
    scored
        Whether the parts have scores.
    """
    done = run.finished()
    for shard in range(run.shards):
        start, _ = run.bounds(shard)
        samples = read_samples_of_shard(run.root, shard)
        made = {name for name in run.explainers if Step("saliency", shard, name) in done}
        values: Values = {}
        for name in run.explainers if scored else ():
            values |= {(name, key): told for key, told in read_shard_values(run, name, shard).items()}
        for step in chunks(len(samples), SAMPLES):
            yield Part(run, start + step.start, samples[step], values, step.start, made)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3) or (H, W) as a PNG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def label_of(sample: dict[str, Any]) -> str | None:
    """The label of a sample as a text: its name, or else its number; None if it has none."""
    return sample["label_name"] or (None if sample["label"] is None else str(sample["label"]))


def prediction_of(sample: dict[str, Any]) -> str | None:
    """The prediction of a sample as a text: its name, or else its number; None if it has none."""
    known = sample["prediction"]
    return sample["prediction_name"] or (None if known is None else str(known))


def class_names(run: Run) -> dict[int, str]:
    """The names of the classes that the run's samples tell, by number."""
    found: dict[int, str] = {}
    for shard in range(run.shards):
        for sample in read_samples_of_shard(run.root, shard):
            pairs = [*zip(sample["targets"], sample["target_names"] or (), strict=False)]
            pairs += [(sample[key], sample[f"{key}_name"]) for key in ("label", "prediction")]
            found |= {number: name for number, name in pairs if number is not None and name}
    return found
