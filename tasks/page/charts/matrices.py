"""Matrices of agreement: between the maps of explainers, and between the rankings of metrics."""

from __future__ import annotations

import math

import altair as alt
import numpy as np

from explainers.models.modality import MODALITIES
from storage.characters import shown
from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, drawn
from tasks.page.charts.looks import PALETTE, Look
from tasks.results.map_agreement import map_agreement
from tasks.results.rank_groups import Ranks, rank_agreement
from tasks.results.statistics import Floats

MAPS, METRICS = "Agreement of explainers", "Agreement of metrics"
_LARGE, _SMALL = 38, 30  # pixels of a cell, and of one in a matrix of many
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
    size = _LARGE if len(told) <= _MANY else _SMALL
    axis = {"title": None, "labelLimit": 190, "domain": False, "ticks": False, "grid": False}
    scale = alt.Scale(domain=told)
    base = alt.Chart(
        alt.NamedData("cells"), width=alt.Step(size), height=alt.Step(size if size == _LARGE else 20)
    ).encode(
        alt.X(
            "column:N", scale=scale, axis=alt.Axis(orient="top", labelAngle=-45, labelAlign="left", **axis)
        ),
        alt.Y("row:N", scale=scale, axis=alt.Axis(**axis)),
    )
    cells = base.mark_rect().encode(
        alt.Color("sign:N", scale=alt.Scale(domain=[True, False], range=list(_COLOURS)), legend=None),
        opacity=alt.Opacity("size:Q", scale=alt.Scale(domain=[0, 1], range=[0.03, _STRONGEST]), legend=None),
    )
    numbers = base.mark_text(fontSize=11 if size == _LARGE else 9).encode(alt.Text("value:Q", format=".2f"))
    return drawn(title, caption, alt.layer(cells, numbers), {"cells": rows})
