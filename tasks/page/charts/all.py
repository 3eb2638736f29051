"""All charts of a run, in the order of the report."""

from __future__ import annotations

from storage.run import Run
from tasks.page.charts.chart import Chart
from tasks.page.charts.curves import curves_chart


def charts_of(run: Run) -> list[Chart]:
    """Draw the charts of a run from what it has stored.

    Returns
    -------
    list
        Each chart; one that cannot be drawn has no picture, and a caption that says why.
    """
    return [curves_chart(run)]
