"""The contact sheet of plain tensors: series as lines, tabular rows as bars, on the colours of their maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from storage.maps import read
from storage.run import Run
from tasks.pictures.drawing import BEHIND, LINE_INCHES, SCALE, heading, map_of

BARS = 40  # features of a tabular row, at most; more are drawn as a line
INCHES = 2.4  # width of one axis
HEIGHT = 1.5  # of a row of them, its heading included
NARROWEST = 5.0  # inches that a heading needs


def tensor_sheet(run: Run, chosen: dict[int, dict[str, Any]]) -> Figure:
    """Under a heading for each sample, of the rows ``chosen``, an axis per explainer."""
    names = list(run.explainers)
    size = (max(INCHES * len(names), NARROWEST), HEIGHT * len(chosen) + LINE_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(SCALE, x=0.01, ha="left", fontsize=8, style="italic")
    parts = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    for part, (row, sample) in zip(parts, chosen.items(), strict=True):
        part.suptitle(heading(sample), x=0.01, ha="left", fontsize=8, weight="bold", parse_math=False)
        values = read(run.inputs, row, row + 1)[0]
        for axis, name in zip(part.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            draw_tensor(axis, name, values, map_of(run, name, row * run.targets_per_image))
    return figure


def draw_tensor(axis: Any, name: str, values: np.ndarray, saliency: np.ndarray) -> None:
    """Values (C, T) on the colours of a map (T,) in [0, 1]; where that is NaN, the values and "no map".

    A tabular row, of one channel and few sites, is a bar a site, and the bars have the colours; anything else
    is a line a channel.
    """
    there = not np.isnan(saliency).any()
    sites = np.arange(values.shape[1])
    bars = len(values) == 1 and len(sites) <= BARS
    if there:
        # Behind bars as well, though fainter: the bar of a feature that is zero could not be seen.
        style = {"cmap": BEHIND, "vmin": 0, "vmax": 1, "alpha": 0.3 if bars else 0.6}
        edges = np.arange(len(sites) + 1) - 0.5
        axis.pcolormesh(edges, [0, 1], saliency[None], transform=axis.get_xaxis_transform(), **style)
    if bars:
        colours = BEHIND(saliency) if there else "white"
        axis.bar(sites, values[0], color=colours, edgecolor="0.2", linewidth=0.5)
        axis.axhline(0, color="0.2", linewidth=0.5)
    else:
        colours = colormaps["viridis"](np.linspace(0, 0.8, len(values)))
        apart = [withStroke(linewidth=2, foreground="white")]  # from the colours behind
        for channel, colour in zip(values, colours, strict=True):
            axis.plot(sites, channel, color=colour, linewidth=0.8, path_effects=apart)
    axis.set_xlim(-0.5, len(sites) - 0.5)
    axis.tick_params(labelsize=6)
    axis.set_title(name if there else f"{name}: no map", fontsize=8)
