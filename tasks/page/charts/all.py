"""All charts of a run, in the order of the report."""

from __future__ import annotations

from storage.parquet import read_table
from storage.run import Run
from tasks.page.charts.chart import Chart
from tasks.page.charts.classes import classes_chart
from tasks.page.charts.cost import cost_chart
from tasks.page.charts.curves import curves_chart
from tasks.page.charts.matrices import maps_chart, metrics_chart
from tasks.page.charts.ranks import ranks_chart
from tasks.results.rank_groups import Ranks


def charts_of(run: Run, curves: Chart | None = None) -> list[Chart]:
    """Draw the charts of a run that has a summary, from what it has stored.

    Parameters
    ----------
    curves
        The first chart, if it is drawn already.

    Returns
    -------
    list
        Each chart; one that cannot be drawn has no picture, and a caption that says why.
    """
    summary = read_table(run.summary)
    ranks = Ranks.of(summary)
    return [
        curves or curves_chart(run),
        ranks_chart(run, ranks),
        cost_chart(run, summary, read_table(run.costs)),
        maps_chart(run),
        metrics_chart(ranks),
        classes_chart(run),
    ]
