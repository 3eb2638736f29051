"""The mean curves of a run with their intervals over images, as they are drawn: one panel after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from explainers.models.modality import MODALITIES
from storage.run import Run
from storage.scores import each_curve
from tasks.metrics.base import Axes
from tasks.metrics.pixel_precision import found_and_taken
from tasks.metrics.registry import metrics
from tasks.results.statistics import Floats, half_width

NEUTRAL = Axes("from a curve's first point to its last", "mean over images")


@dataclass(frozen=True)
class Band:
    """The mean curve of one explainer in one panel, with its 95 % interval over images.

    Attributes
    ----------
    x, mean
        (points,) where the curve is.
    low, high
        (points,) the ends of the interval of ``mean``, from Student's t; NaN for a single image.
    images
        How many images have a curve.
    """

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    images: int


def axes_of(run: Run, column: str) -> Axes:
    """Return the axes of the curves of a column, as its metric describes them, or neutral ones.

    Metrics that the job names by module and class get neutral names, since a run folder may come from
    anybody, and code that it names is not run to look at it.
    """
    name, entry = next((n, entry) for n, entry in run.metrics.items() if column in entry.columns)
    if ":" in name:
        return NEUTRAL
    try:
        cls = metrics.get(name)
        if not hasattr(cls, "axes"):
            return NEUTRAL
        found: Axes = cls.axes(column, cls.Parameters(**entry.parameters))
    except ValueError:  # a plug-in that is not installed, or a run of a version with other parameters
        return NEUTRAL
    sites = MODALITIES[run.modality].site_names
    return replace(found, x=found.x.replace("{sites}", sites), y=found.y.replace("{sites}", sites))


def bands_of(run: Run) -> dict[str, dict[str, list[Band]]]:
    """Return the bands of every ranked column that has curves: by column, explainer and panel.

    The curves of a shard are in memory at a time. An image with several targets counts once, with the mean
    over its targets.
    """
    ranked = {column for column, about in run.columns.items() if about.better}
    found: dict[str, dict[str, list[Band]]] = {}
    for explainer in run.explainers:
        sums: dict[str, _Sums] = {}
        for column, curves in each_curve(run, explainer, ranked):
            if column not in sums:
                about = run.columns[column]
                sums[column] = _Sums(axes_of(run, column), (about.low, about.high))
            sums[column].add(_of_images(curves, run.targets_per_image))
        for column, own in sums.items():
            if own.images:
                found.setdefault(column, {})[explainer] = list(own.bands())
    return {column: found[column] for column in run.columns if column in found}


def _of_images(curves: NDArray[np.float32], targets: int) -> Floats:
    """Return the mean over the targets of each image that has a curve, (images, points)."""
    each = curves.reshape(-1, targets, curves.shape[1]).astype(np.float64)
    known = ~np.isnan(each[:, :, :1])
    total, count = np.where(known, each, 0).sum(1), known.sum(1)
    mean: Floats = total[count[:, 0] > 0] / count[count[:, 0] > 0]
    return mean


class _Sums:
    """Sums over images, of which a mean curve and its variance are made.

    The mean curve is a ratio of means, a / b, of which b is 1 but for histograms. Intervals end at ``ends``.
    """

    def __init__(self, axes: Axes, ends: tuple[float, float]) -> None:
        self.axes, self.ends, self.images = axes, ends, 0
        self.a = self.b = self.aa = self.ab = self.bb = np.zeros(1)

    def add(self, curves: Floats) -> None:
        """Add the curves of some images, (images, points)."""
        a, b = curves, np.ones_like(curves)
        if self.axes.histograms:
            a, b = (each.numpy() for each in found_and_taken(torch.from_numpy(curves)))
        self.images += len(curves)
        self.a, self.b = self.a + a.sum(0), self.b + b.sum(0)
        self.aa, self.ab, self.bb = (
            self.aa + (a * a).sum(0),
            self.ab + (a * b).sum(0),
            self.bb + (b * b).sum(0),
        )

    def bands(self) -> Iterator[Band]:
        """Yield a band for each panel."""
        n, there = self.images, self.b > 0
        a, b, aa, ab, bb = (each[there] for each in (self.a, self.b, self.aa, self.ab, self.bb))
        mean = a / b
        # The variance of a ratio of means is that of a - mean * b, to first order; for b = 1 it is exact.
        half = half_width(n, (aa - 2 * mean * ab + mean**2 * bb).clip(min=0)) / (b / n)
        # The range is the column's, and a plug-in's curve may leave it.
        low = np.maximum(mean - half, np.minimum(mean, self.ends[0]))
        high = np.minimum(mean + half, np.maximum(mean, self.ends[1]))
        if self.axes.histograms:
            yield Band(a / a[-1], mean, low, high, n)
            return
        for part in np.split(np.arange(len(mean)), len(self.axes.panels)):
            yield Band(_positions(self.axes, len(part)), mean[part], low[part], high[part], n)


def _positions(axes: Axes, points: int) -> Floats:
    """Return where (points,) lie along x."""
    if axes.at == "shares":
        return np.linspace(0, 1, points)
    if axes.at == "numbers":
        return np.arange(1.0, points + 1)
    return np.array(axes.at, dtype=np.float64)
