"""Faithfulness against the time of a map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from storage.characters import shown
from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, Spec, drawn, nominal, quantitative
from tasks.page.charts.curves import WORDS
from tasks.page.charts.looks import Look
from tasks.results.headline import KINDS, headline

TITLE = "Faithfulness against cost"
WIDTH, HEIGHT = 600, 320
_LETTER, _LINE = 7, 13  # pixels of a letter and of a line, for the places of names


def cost_chart(run: Run, summary: pa.Table, costs: pa.Table) -> Chart:
    """Draw the mean of the first faithfulness column of the headline against the time of a map."""
    column = _faithful(run)
    if column is None:
        return Chart(TITLE, "No headline metric of this run measures faithfulness.")
    times = {row["explainer"]: row["milliseconds"] for row in costs.to_pylist()}
    look = Look.of(run)
    rows: Rows = [
        {"explainer": look.names[row["explainer"]], "time": time}
        | {key: row[key] for key in ("mean", "low", "high") if math.isfinite(row[key])}
        for row in summary.to_pylist()
        if row["metric"] == column
        and math.isfinite(row["mean"])
        and (time := times.get(row["explainer"])) is not None
        and time > 0
    ]
    if len(rows) < 2:
        return Chart(TITLE, f"Fewer than two explainers have a score in {shown(column)} and a measured time.")
    drawn_ones = {row["explainer"] for row in rows}
    without = ", ".join(name for name in look.names.values() if name not in drawn_ones)
    better = WORDS[str(run.columns[column].better)]
    corner = "the upper left" if better == WORDS["higher"] else "the lower left"
    caption = (
        f"The mean of {shown(column)} ({better}), with its 95 % bootstrap interval, against the milliseconds "
        "that a map took, without reading and writing. Time is on a logarithmic scale. Good and cheap is in "
        f"{corner}. Controls are grey."
    )
    if without:
        caption += f" Without a score or a measured time: {without}."
    return drawn(TITLE, caption, *_picture(column, rows, look))


def _faithful(run: Run) -> str | None:
    faithful = {
        column
        for name, entry in run.metrics.items()
        if name in KINDS["faithfulness"]
        for column in entry.columns
    }
    return next((column for column in headline(run.manifest) if column in faithful), None)


def _picture(column: str, rows: Rows, look: Look) -> tuple[Spec, dict[str, Rows]]:
    """Return the chart and its data."""
    times = [row["time"] for row in rows]
    wide = (min(times) / 1.5, max(times) * 1.5)
    values = [row[key] for row in rows for key in ("mean", "low", "high") if key in row]
    margin = (max(values) - min(values)) * 0.08 or 0.5
    tall = (min(values) - margin, max(values) + margin)
    across = {"type": "log", "domain": list(wide), "nice": False}
    axis = {"format": "~g", "values": _marks(wide)}
    x = quantitative("time", title="milliseconds per map", scale=across, axis=axis)
    y = {"scale": {"domain": list(tall), "nice": False, "zero": False}, "title": shown(column)}
    points, names = {"data": {"name": "points"}}, {"data": {"name": "names"}}
    mean = quantitative("mean", **y)
    interval = {
        "mark": {"type": "rule", "strokeWidth": 1.5},
        "encoding": {"x": x, "y": quantitative("low", **y), "y2": {"field": "high"}, "color": look.colour()},
    }
    point = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
        "encoding": {"x": x, "y": mean, "color": look.colour(), "shape": look.shape()},
    }
    line = {
        "mark": {"type": "rule", "strokeWidth": 0.7, "opacity": 0.6},
        "encoding": {"x": x, "y": mean, "x2": {"field": "end time"}, "y2": {"field": "name mean"}},
    }
    text = {
        "mark": {"type": "text", "align": "left", "baseline": "middle"},
        "encoding": {
            "x": quantitative("name time", scale=across),
            "y": quantitative("name mean", **y),
            "text": nominal("explainer"),
        },
    }
    layers = [points | interval, points | point, names | line, names | text]
    chart = {"width": WIDTH, "height": HEIGHT, "layer": layers}
    return chart, {"points": rows, "names": _names(rows, wide, tall)}


def _marks(wide: tuple[float, float]) -> list[float]:
    """Return the marks of a logarithmic axis: powers of ten, and 2 and 5 times them if there are few."""
    powers = range(math.floor(math.log10(wide[0])), math.ceil(math.log10(wide[1])))
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    marks = (float(f"{digit}e{power}") for power in powers for digit in digits)
    return [mark for mark in marks if wide[0] <= mark <= wide[1]]


def _names(rows: Rows, wide: tuple[float, float], tall: tuple[float, float]) -> Rows:
    """Return the names of points with their places, and the lines that lead to them."""
    length, height = math.log(wide[1] / wide[0]), tall[1] - tall[0]

    def down(value: Any) -> float:
        return HEIGHT * float(tall[1] - value) / height

    def time(x: float) -> float:
        return float(f"{wide[0] * math.exp(x / WIDTH * length):.5g}")

    points = [
        Point(
            WIDTH * math.log(row["time"] / wide[0]) / length,
            down(row["mean"]),
            down(row.get("high", row["mean"])),
            down(row.get("low", row["mean"])),
        )
        for row in rows
    ]
    found = places(points, [row["explainer"] for row in rows])
    return [
        {key: row[key] for key in ("explainer", "time", "mean")}
        | {"name time": time(place.x), "end time": time(place.end)}
        | {"name mean": float(f"{tall[1] - place.y / HEIGHT * height:.5g}")}
        for row, place in zip(rows, found, strict=True)
    ]


class Point(NamedTuple):
    """A point and the ends of its interval, in pixels from the upper left corner."""

    x: float
    y: float
    top: float
    bottom: float


class Place(NamedTuple):
    """Where a name stands: the left end and the middle of its line, and the end that is near its point."""

    x: float
    y: float
    end: float


Box = tuple[float, float, float, float]  # left, top, right, bottom


def places(points: list[Point], names: list[str]) -> list[Place]:
    """Find a place for the name of each point, near it and, if possible, free of all that is drawn."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _, _ in points]
    taken += [(x - 1, top, x + 1, bottom) for x, _, top, bottom in points]
    found = []
    for point, name in zip(points, names, strict=True):
        width = _LETTER * len(name)
        tried = list(_around(point, width))
        place = next((place for place in tried if not _hits(_box(place, width), taken)), tried[0])
        taken.append(_box(place, width))
        found.append(place)
    return found


def _around(point: Point, width: float) -> Iterator[Place]:
    """Yield places around a point, the nearest ones first."""
    for away in range(0, 12 * _LINE, _LINE):
        for y in sorted({point.y - away, point.y + away}):
            for aside in (9, 9 + away):
                yield Place(point.x + aside, y, point.x + aside - 2)
                yield Place(point.x - aside - width, y, point.x - aside + 2)


def _box(place: Place, width: float) -> Box:
    return place.x, place.y - _LINE / 2, place.x + width, place.y + _LINE / 2


def _hits(box: Box, taken: list[Box]) -> bool:
    """Whether a box leaves the chart, but for its right end, or overlaps another one."""
    left, top, right, bottom = box
    return (
        min(left, top) < 0
        or bottom > HEIGHT
        or any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in taken)
    )
