"""The scores of explainers in each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.run import Run
from storage.samples import sample_table
from storage.scores import read_score
from tasks.results.statistics import Floats, half_width

MOST_CLASSES = 20


@dataclass(frozen=True)
class ClassScores:
    """The mean scores of E explainers in C classes, those that are explained for most images.

    Attributes
    ----------
    explainers
        The names of the explainers.
    classes, names
        The numbers of the classes, the one with most images first, and their names; None where there is none.
    there
        How many classes are explained in the run.
    mean, low, high
        (E, C) the mean over the images whose class it is, and its 95 % interval (Student's t). The mean is
        NaN where no image has a score, and the interval where only one has.
    """

    explainers: list[str]
    classes: list[int]
    names: list[str | None]
    there: int
    mean: Floats
    low: Floats
    high: Floats


def class_scores(run: Run, column: str) -> ClassScores:
    """Compute the scores by class in a column that has a value per image, one explainer after the other."""
    samples = sample_table(run.root, ["targets", "target_names", "label", "label_name"])
    targets = _targets(run, samples)
    numbers, first, counts = np.unique(targets, return_index=True, return_counts=True)
    known = numbers >= 0
    numbers, first, counts = numbers[known], first[known], counts[known]
    chosen = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    kept = numbers[chosen]
    mean, low, high = np.full((3, len(run.explainers), len(kept)), np.nan)
    for e, explainer in enumerate(run.explainers):
        values = read_score(run, explainer, column)
        for c, number in enumerate(kept):
            own = values[(targets == number) & np.isfinite(values)]
            if len(own):
                mean[e, c] = own.mean()
                half = half_width(len(own), ((own - own.mean()) ** 2).sum())
                low[e, c], high[e, c] = mean[e, c] - half, mean[e, c] + half
    about = run.columns[column]
    low, high = np.maximum(low, about.low), np.minimum(high, about.high)
    names = [
        _name(run, samples, int(map_row), int(n)) for map_row, n in zip(first[chosen], kept, strict=True)
    ]
    return ClassScores(list(run.explainers), kept.tolist(), names, len(numbers), mean, low, high)


def _targets(run: Run, samples: pa.Table) -> NDArray[np.int64]:
    """Return the explained class of each map, (maps,); -1 where there is none."""
    lists = samples["targets"].combine_chunks()
    found = np.full((run.rows, run.targets_per_image), -1, np.int64)
    images = pc.list_parent_indices(lists).to_numpy()
    lengths = np.bincount(images, minlength=run.rows)
    places = np.arange(len(images)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found[images, places] = pc.list_flatten(lists).to_numpy()
    return found.ravel()


def _name(run: Run, samples: pa.Table, map_row: int, number: int) -> str | None:
    """Return the name of a class as the model has it, or else the dataset; None if it is just the number."""
    image, place = divmod(map_row, run.targets_per_image)
    names = samples["target_names"][image].as_py()
    name: str | None = names[place] if names else None
    if name is None:
        labelled = pc.index(samples["label"], pa.scalar(number, samples["label"].type)).as_py()
        name = samples["label_name"][labelled].as_py() if labelled >= 0 else None
    return None if name == str(number) else name
