"""Draws the mean curves of a run: insertion, deletion and every other metric that has curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from explainers.controls import CONTROLS
from storage.run import Run
from tasks.pictures.drawing import save

ACROSS = 3  # panels side by side
DASHES = (":", "--", "-.", (0, (8, 2)))  # one for each control
WORDS = {"higher": "higher is better", "lower": "lower is better"}


def draw_curves(run: Run, curves: Mapping[tuple[str, str], NDArray[np.float64]]) -> None:
    """Write ``report/curves.png`` with one panel per metric; no file if no ranked metric has curves.

    Curves are drawn from their first point to their last. Controls are grey and dashed.

    Parameters
    ----------
    curves
        (points,) by explainer and column, as :func:`tasks.results.summary.mean_curves` returns them.
    """
    # Reference columns do not rank explainers, so they are not drawn.
    columns = {column: better for _, column in curves if (better := run.columns[column].better)}
    if not columns:
        return
    across, down = min(ACROSS, len(columns)), -(-len(columns) // ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.0 * down + 0.8), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    styles = _styles(list(run.explainers))
    for axis, (column, better) in zip(axes, columns.items(), strict=False):
        for name, style in styles.items():
            points = curves.get((name, column), np.empty(0))
            axis.plot(np.linspace(0, 1, len(points)), points, label=name, **style)
        axis.set_title(f"{column}, {WORDS[better]}", fontsize=9, parse_math=False)
        axis.tick_params(labelsize=7)
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    figure.supxlabel("from a curve's first point to its last", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8)
    save(figure, run.report / "curves.png")


def _styles(names: list[str]) -> dict[str, dict[str, object]]:
    """The line style of each explainer, as keyword arguments of ``plot``."""
    own = [name for name in names if name not in CONTROLS]
    palette = colormaps["tab10" if len(own) <= 10 else "tab20"]
    dashes = dict(zip(CONTROLS, DASHES, strict=True))
    return {
        name: {"color": "0.5", "linestyle": dashes[name]}
        if name in CONTROLS
        else {"color": palette(own.index(name) % palette.N)}
        for name in names
    }
