"""Draws the contact sheet of plain tensors: series as lines and tabular rows as bars, coloured by maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from storage.maps import read
from storage.run import Run
from tasks.pictures.drawing import BEHIND, LINE_INCHES, SCALE, Picture, heading, map_of

BARS = 40  # a tabular row with more features is drawn as a line
INCHES = 2.4  # width of one axis
HEIGHT = 1.5  # height of a row of axes with its heading
NARROWEST = 5.0  # inches that a heading needs


def tensor_sheet(run: Run, chosen: dict[int, dict[str, Any]]) -> Figure:
    """The figure: a heading per sample, and below it one axis per explainer.

    Parameters
    ----------
    chosen
        The samples to draw, by their index in the run.
    """
    names = list(run.explainers)
    size = (max(INCHES * len(names), NARROWEST), HEIGHT * len(chosen) + LINE_INCHES)
    figure = Picture(figsize=size, layout="constrained")
    figure.suptitle(SCALE, x=0.01, ha="left", fontsize=8, style="italic")
    parts = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    for part, (row, sample) in zip(parts, chosen.items(), strict=True):
        part.suptitle(heading(sample), x=0.01, ha="left", fontsize=8, weight="bold", parse_math=False)
        values = read(run.inputs, row, row + 1)[0]
        for axis, name in zip(part.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            draw_tensor(axis, name, values, map_of(run, name, row * run.targets_per_image))
    return figure


def draw_tensor(axis: Any, name: str, values: np.ndarray, saliency: np.ndarray) -> None:
    """Draw values on the colours of a map; without a map, the values alone and the title "no map".

    A tabular row, which has one channel and few sites, gets one bar per site, in the colour of the map. Other
    tensors get one line per channel.

    Parameters
    ----------
    name
        The explainer, for the title.
    values
        (C, T).
    saliency
        (T,) in [0, 1], or NaN if there is no map.
    """
    there = not np.isnan(saliency).any()
    sites = np.arange(values.shape[1])
    bars = len(values) == 1 and len(sites) <= BARS
    if there:
        # Bars have a background too, though fainter, since the bar of a feature that is zero is not visible.
        style = {"cmap": BEHIND, "vmin": 0, "vmax": 1, "alpha": 0.3 if bars else 0.6}
        edges = np.arange(len(sites) + 1) - 0.5
        # Under this transform, 0 and 1 are the bottom and the top of the axis, whatever the values are.
        axis.pcolormesh(edges, [0, 1], saliency[None], transform=axis.get_xaxis_transform(), **style)
    if bars:
        colours = BEHIND(saliency) if there else "white"
        axis.bar(sites, values[0], color=colours, edgecolor="0.2", linewidth=0.5)
        axis.axhline(0, color="0.2", linewidth=0.5)
    else:
        colours = colormaps["viridis"](np.linspace(0, 0.8, len(values)))
        apart = [withStroke(linewidth=2, foreground="white")]  # a line stands out from the background
        for channel, colour in zip(values, colours, strict=True):
            axis.plot(sites, channel, color=colour, linewidth=0.8, path_effects=apart)
    axis.set_xlim(-0.5, len(sites) - 0.5)
    axis.tick_params(labelsize=6)
    axis.set_title(name if there else f"{name}: no map", fontsize=8)
