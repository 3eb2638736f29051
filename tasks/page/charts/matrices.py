"""Matrices of agreement: between the maps of explainers, and between the rankings of metrics."""

from __future__ import annotations

import math

import numpy as np

from explainers.models.modality import MODALITIES
from storage.characters import shown
from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, Spec, drawn, nominal, quantitative
from tasks.page.charts.looks import PALETTE, Look
from tasks.results.map_agreement import map_agreement
from tasks.results.rank_groups import Ranks, rank_agreement
from tasks.results.statistics import Floats

MAPS, METRICS = "Agreement of explainers", "Agreement of metrics"
_LARGE, _SMALL, _LOW = 38, 30, 20  # pixels of a cell, and the width and height of one in a matrix of many
_MANY = 14
_COLOURS = (PALETTE[0], PALETTE[2])  # of agreement and of disagreement
_STRONGEST = 0.75  # opacity of a full agreement, through which the number can be read


def maps_chart(run: Run) -> Chart:
    """Draw the rank correlation of the maps of every two explainers."""
    found = map_agreement(run)
    if len(found.explainers) < 2 or np.isnan(_off_diagonal(found.correlation)).all():
        return Chart(MAPS, "Maps are not compared: that takes two explainers with maps that are not flat.")
    plural = MODALITIES[run.modality].plural
    sites = MODALITIES[run.modality].site_names if run.modality == "text" else "cells"
    which = f"all {found.maps:,} maps"
    if found.maps < found.there:
        which = f"{found.maps:,} of {found.there:,} maps, evenly spread over the {plural}"
    caption = (
        "Spearman's rank correlation of the maps of two explainers for the same input, averaged over "
        f"{which}. Maps are taken on a common grid of {'x'.join(map(str, found.grid))} {sites}, without "
        "evidence against the class. 1: the same order of salient places; 0: unrelated; below 0, in another "
        "colour: opposite. Flat maps have no order and do not count. An empty cell has no pair of maps."
    )
    look = Look.of(run)
    names = [look.names[name] for name in found.explainers]
    return _matrix(MAPS, caption, "maps are flat or missing", names, found.correlation)


def metrics_chart(ranks: Ranks) -> Chart:
    """Draw Kendall's tau between the rankings of explainers by every two ranked columns."""
    tau = rank_agreement(ranks)
    if len(tau) < 2 or np.isnan(_off_diagonal(tau)).all():
        return Chart(
            METRICS, "Rankings are not compared: that takes two ranked columns with 3 explainers in common."
        )
    caption = (
        "Kendall's tau between the rankings of the explainers, controls included, by two columns. 1: the "
        "same ranking; 0: unrelated; below 0, in another colour: opposite. Columns that agree add little to "
        "each other; columns that disagree measure different things. An empty cell has too few explainers in "
        "common."
    )
    return _matrix(
        METRICS, caption, "ranks are tied or too few", [shown(name) for name in ranks.columns], tau
    )


def _off_diagonal(values: Floats) -> Floats:
    return values[~np.eye(len(values), dtype=bool)]


def _matrix(title: str, caption: str, why: str, names: list[str], values: Floats) -> Chart:
    """Draw a symmetric matrix without the rows that are empty, of which the caption says why."""
    empty = np.array([np.isnan(np.delete(row, i)).all() for i, row in enumerate(values)])
    left_out = [name for name, out in zip(names, empty, strict=True) if out]
    told = [name for name, out in zip(names, empty, strict=True) if not out]
    values = values[~empty][:, ~empty]
    if left_out:
        caption += f" Left out, since their {why}: {', '.join(left_out)}."
    pairs = ((i, j, round(float(values[i, j]), 3)) for i in range(len(told)) for j in range(len(told)))
    rows: Rows = [
        {"row": told[i], "column": told[j], "value": value, "sign": value >= 0, "size": abs(value)}
        for i, j, value in pairs
        if i != j and not math.isnan(value)
    ]
    return drawn(title, caption, _cells(told), {"cells": rows})


def _cells(names: list[str]) -> Spec:
    """Return the chart of a matrix between these names."""
    large = len(names) <= _MANY
    axis = {"title": None, "labelLimit": 190, "domain": False, "ticks": False, "grid": False}
    places = {
        "x": nominal(
            "column",
            scale={"domain": names},
            axis=axis | {"orient": "top", "labelAngle": -45, "labelAlign": "left"},
        ),
        "y": nominal("row", scale={"domain": names}, axis=axis),
    }
    strength = {"domain": [0, 1], "range": [0.03, _STRONGEST]}
    colours = {
        "color": nominal("sign", scale={"domain": [True, False], "range": list(_COLOURS)}, legend=None),
        "opacity": quantitative("size", scale=strength, legend=None),
    }
    text = {"type": "text", "fontSize": 11 if large else 9}
    return {
        "data": {"name": "cells"},
        "width": {"step": _LARGE if large else _SMALL},
        "height": {"step": _LARGE if large else _LOW},
        "layer": [
            {"mark": "rect", "encoding": places | colours},
            {"mark": text, "encoding": places | {"text": quantitative("value", format=".2f")}},
        ],
    }
