"""The mean curves of a run, one panel a curve, with axes named by the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from explainers.models.modality import MODALITIES
from storage.characters import shown
from storage.files import replacing
from storage.run import Run
from tasks.metrics.base import Axes
from tasks.page.charts.chart import Chart, Rows, Spec, drawn, quantitative
from tasks.page.charts.looks import Look
from tasks.results.curve_bands import Band, axes_of, bands_of

TITLE = "Curves"
MOST_POINTS = 100  # of a curve that are drawn
ACROSS = 3  # panels side by side
_MOST_TICKS = 8  # of an axis of whole numbers, each of which has one
WIDTH, HEIGHT = 235, 165  # pixels of a panel
SPACING = {"row": 84, "column": 64}  # pixels between two panels
WORDS = {"higher": "higher is better", "lower": "lower is better"}


def curves_chart(run: Run) -> Chart:
    """Draw the mean curve of every explainer in every ranked column that has curves."""
    look, most = Look.of(run), 0
    panels: list[Spec] = []
    data: dict[str, Rows] = {}
    for column, by_explainer in bands_of(run).items():
        axes = axes_of(run, column)
        most = max(most, *(len(own[0].x) for own in by_explainer.values()))
        for number, heading in enumerate(axes.panels):
            bands = {look.names[name]: own[number] for name, own in by_explainer.items()}
            if all(len(band.x) > 1 for band in bands.values()):
                data[f"panel {len(panels)}"] = [row for own in bands.items() for row in _rows(*own, axes)]
                better = WORDS[str(run.columns[column].better)]
                told = f"{heading}, {better}" if heading else better
                title = {"text": shown(column), "subtitle": told, "limit": WIDTH}
                last = max(band.x[-1] for band in bands.values())
                panels.append(_panel(f"panel {len(panels)}", title, axes, last, look))
    if not panels:
        return Chart(TITLE, "No metric of this run that ranks explainers has curves.")
    # Plots are aligned, and axes and titles stand in the space between them.
    across = {"columns": ACROSS, "align": "all", "bounds": "flush", "spacing": SPACING}
    return drawn(TITLE, _caption(run, most), {"concat": panels, **across}, data)


def write_curves(run: Run) -> Chart:
    """Write ``report/curves.png``, no file if there are no curves; return the chart."""
    chart = curves_chart(run)
    if chart.svg:
        with replacing(run.report / "curves.png") as partial:
            partial.write_bytes(chart.png())
    return chart


def _caption(run: Run, most: int) -> str:
    plural = MODALITIES[run.modality].plural
    thinned = f" Of curves with more points, {MOST_POINTS} are drawn." if most > MOST_POINTS else ""
    return (
        f"Each panel is one curve of a metric: the mean over {plural}, with its 95 % interval (Student's t) "
        "as a band. Explainers are coloured, controls are grey and dashed. Where higher is better, a good "
        f"explainer is above all controls; where lower is better, it is below them.{thinned}"
    )


def _panel(data: str, title: Spec, axes: Axes, last: float, look: Look) -> Spec:
    """Return the panel of one curve, which ends at ``last``."""
    shape = "step-before" if axes.histograms else "linear"
    ticks: Spec = {"tickCount": 5}
    if axes.at == "numbers" and last <= _MOST_TICKS:
        ticks = {"format": "d", "values": [*range(1, int(last) + 1)]}
    across = {"title": axes.x, "axis": {"titleLimit": WIDTH + 20, **ticks}}
    x = quantitative("x", **across, scale={"nice": False, "zero": axes.at == "shares"})
    y = {"title": axes.y, "axis": {"tickCount": 5, "titleLimit": HEIGHT + 10}}
    legend = look.legend(
        ACROSS * (WIDTH + SPACING["column"]), symbolType="stroke", symbolSize=400, symbolOpacity=1
    )
    # The bands of many explainers lie over each other.
    faint = min(0.14, 1.4 / len(look.names))
    band = {
        "mark": {"type": "area", "opacity": faint, "interpolate": shape},
        "encoding": {
            "x": x,
            "y": quantitative("low", **y),
            "y2": {"field": "high"},
            "color": look.colour(legend),
        },
    }
    line = {
        "mark": {"type": "line", "strokeWidth": 1.6, "interpolate": shape},
        "encoding": {
            "x": x,
            "y": quantitative("mean", **y),
            "color": look.colour(legend),
            "strokeDash": look.dash(legend),
        },
    }
    size = {"width": WIDTH, "height": HEIGHT}
    return {"data": {"name": data}, "title": title, **size, "layer": [band, line]}


def _rows(name: str, band: Band, axes: Axes) -> list[dict[str, Any]]:
    """Return a curve as rows of the chart's data."""
    chosen = np.unique(np.linspace(0, len(band.x) - 1, min(len(band.x), MOST_POINTS)).round().astype(int))
    order = chosen[np.argsort(band.x[chosen], kind="stable")]
    if axes.histograms:  # precision holds from the recall of the threshold before
        order = np.concatenate([order[:1], order])
    each = zip(*(getattr(band, key)[order].tolist() for key in ("x", "mean", "low", "high")), strict=True)
    rows = [{"explainer": name, "x": x, "mean": mean} | _interval(low, high) for x, mean, low, high in each]
    if axes.histograms:
        rows[0]["x"] = 0.0
    return [{key: v if isinstance(v, str) else float(f"{v:.5g}") for key, v in row.items()} for row in rows]


def _interval(low: float, high: float) -> dict[str, float]:
    return {} if np.isnan(low) else {"low": low, "high": high}
