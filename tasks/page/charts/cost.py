"""Faithfulness against the time of a map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import altair as alt
import pyarrow as pa

from storage.characters import shown
from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, drawn
from tasks.page.charts.curves import WORDS
from tasks.page.charts.looks import Look
from tasks.results.headline import KINDS, headline

TITLE = "Faithfulness against cost"
WIDTH, HEIGHT = 600, 320
_LETTER, _LINE = 6.4, 13  # pixels of a letter and of a line, for the places of names


def cost_chart(run: Run, summary: pa.Table, costs: pa.Table) -> Chart:
    """Draw the mean of the first faithfulness column of the headline against the time of a map."""
    column = _faithful(run)
    if column is None:
        return Chart(TITLE, "No headline metric of this run measures faithfulness.")
    times = {row["explainer"]: row["milliseconds"] for row in costs.to_pylist()}
    rows: Rows = [
        {"explainer": shown(row["explainer"]), "time": time}
        | {key: row[key] for key in ("mean", "low", "high") if not math.isnan(row[key])}
        for row in summary.to_pylist()
        if row["metric"] == column
        and not math.isnan(row["mean"])
        and (time := times.get(row["explainer"])) is not None
        and time > 0
    ]
    if len(rows) < 2:
        return Chart(TITLE, f"Fewer than two explainers have a score in {shown(column)} and a measured time.")
    drawn_ones = {row["explainer"] for row in rows}
    without = ", ".join(shown(name) for name in run.explainers if shown(name) not in drawn_ones)
    better = WORDS[str(run.columns[column].better)]
    corner = "the upper left" if better == WORDS["higher"] else "the lower left"
    caption = (
        f"The mean of {shown(column)} ({better}), with its 95 % bootstrap interval, against the milliseconds "
        "that a map took, without reading and writing. Time is on a logarithmic scale. Good and cheap is in "
        f"{corner}. Controls are grey."
    )
    if without:
        caption += f" Without a score or a measured time: {without}."
    return drawn(TITLE, caption, *_picture(column, rows, Look.of(run)))


def _faithful(run: Run) -> str | None:
    faithful = {
        column
        for name, entry in run.metrics.items()
        if name in KINDS["faithfulness"]
        for column in entry.columns
    }
    return next((column for column in headline(run.manifest) if column in faithful), None)


def _picture(column: str, rows: Rows, look: Look) -> tuple[alt.LayerChart, dict[str, Rows]]:
    """Return the chart and its data."""
    times = [row["time"] for row in rows]
    wide = (min(times) / 1.5, max(times) * 1.5)
    decades = math.log(wide[1] / wide[0])
    values = [row[key] for row in rows for key in ("mean", "low", "high") if key in row]
    margin = (max(values) - min(values)) * 0.08 or 0.5
    tall = (min(values) - margin, max(values) + margin)
    height = tall[1] - tall[0]
    points = [
        (WIDTH * math.log(row["time"] / wide[0]) / decades, HEIGHT * (tall[1] - row["mean"]) / height)
        for row in rows
    ]
    names: Rows = [
        {
            "explainer": row["explainer"],
            "time": float(f"{wide[0] * math.exp(place.x / WIDTH * decades):.5g}"),
            "mean": float(f"{tall[1] - place.y / HEIGHT * height:.5g}"),
        }
        for row, place in zip(rows, places(points, [row["explainer"] for row in rows]), strict=True)
    ]
    marks = [
        float(f"{digit}e{power}")
        for power in range(math.floor(math.log10(wide[0])), math.ceil(math.log10(wide[1])))
        for digit in ((1, 2, 5) if decades < math.log(1e4) else (1,))
    ]
    x = alt.X(
        "time:Q",
        title="milliseconds per map",
        scale=alt.Scale(type="log", domain=list(wide), nice=False),
        axis=alt.Axis(format="~g", values=[mark for mark in marks if wide[0] <= mark <= wide[1]]),
    )
    y = {"scale": alt.Scale(domain=list(tall), nice=False, zero=False), "title": shown(column)}
    base = alt.Chart(alt.NamedData("points"))
    text = alt.Chart(alt.NamedData("names")).mark_text(align="left", baseline="middle")
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.5).encode(x, alt.Y("low:Q", **y), alt.Y2("high:Q"), look.colour()),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x, alt.Y("mean:Q", **y), look.colour(), look.shape()
        ),
        text.encode(x, alt.Y("mean:Q", **y), alt.Text("explainer:N")),
        width=WIDTH,
        height=HEIGHT,
    )
    return chart, {"points": rows, "names": names}


class Place(NamedTuple):
    """Where a name stands: the left end and the middle of its line, in pixels from the upper left corner."""

    x: float
    y: float


def places(points: list[tuple[float, float]], names: list[str]) -> list[Place]:
    """Find a place for the name of each point, near it and free of other names and points if possible."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    found = []
    for point, name in zip(points, names, strict=True):
        width = _LETTER * len(name)
        tried = list(_around(point, width))
        free = (place for place in tried if not _hits(_box(place, width), taken))
        place = next(free, tried[0])
        taken.append(_box(place, width))
        found.append(place)
    return found


def _around(point: tuple[float, float], width: float) -> Iterator[Place]:
    """Yield places around a point, the nearest ones first."""
    x, y = point
    for away in range(0, 9 * _LINE, _LINE):
        for down in sorted({-away, away}):
            yield Place(x + 9, y + down)
            yield Place(x - 9 - width, y + down)
            if away:
                yield Place(x - width / 2, y + down)


def _box(place: Place, width: float) -> tuple[float, float, float, float]:
    return place.x, place.y - _LINE / 2, place.x + width, place.y + _LINE / 2


def _hits(box: tuple[float, float, float, float], taken: list[tuple[float, float, float, float]]) -> bool:
    """Whether a box leaves the chart at the top or the bottom, or overlaps another one."""
    left, top, right, bottom = box
    return (
        top < 0
        or bottom > HEIGHT
        or any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in taken)
    )
