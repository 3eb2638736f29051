"""One picture of a run's curves: insertion, deletion, and every other metric that has some."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from explainers.controls import CONTROLS
from storage.run import Run
from tasks.pictures.drawing import save

ACROSS = 3  # metrics beside each other
DASHES = (":", "--", "-.", (0, (8, 2)))  # of the controls
WORDS = {"higher": "higher is better", "lower": "lower is better"}


def draw_curves(run: Run, curves: Mapping[tuple[str, str], NDArray[np.float64]]) -> None:
    """Write ``report/curves.png``, unless no metric that judges has curves: a panel a metric.

    ``curves``, as of :func:`tasks.results.summary.mean_curves`, are (points,) by explainer and metric. They
    are drawn from their first point to their last; controls are grey and dashed.
    """
    columns = list(dict.fromkeys(column for _, column in curves if run.columns[column]["better"]))
    if not columns:
        return
    across, down = min(ACROSS, len(columns)), -(-len(columns) // ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.0 * down + 0.8), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    styles = _styles(list(run.explainers))
    for axis, column in zip(axes, columns, strict=False):
        for name, style in styles.items():
            points = curves.get((name, column), np.empty(0))
            axis.plot(np.linspace(0, 1, len(points)), points, label=name, **style)
        axis.set_title(f"{column}, {WORDS[run.columns[column]['better']]}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    figure.supxlabel("from a curve's first point to its last", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8)
    save(figure, run.report / "curves.png")


def _styles(names: list[str]) -> dict[str, dict[str, object]]:
    """How each explainer's lines look."""
    own = [name for name in names if name not in CONTROLS]
    palette = colormaps["tab10" if len(own) <= 10 else "tab20"]
    dashes = dict(zip(CONTROLS, DASHES, strict=True))
    return {
        name: {"color": "0.5", "linestyle": dashes[name]}
        if name in CONTROLS
        else {"color": palette(own.index(name) % palette.N)}
        for name in names
    }
