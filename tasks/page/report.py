"""Writes the report of a run: one HTML file that needs no other file and no network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from storage.files import replacing
from storage.parquet import read_table
from storage.places import is_there
from storage.run import Run
from tasks.page.charts.all import charts_of
from tasks.page.charts.chart import Chart
from tasks.page.counted import counted_maps, counted_scores
from tasks.page.findings import findings_of
from tasks.page.gallery import gallery_of
from tasks.page.rendering import render
from tasks.page.run_facts import facts_of
from tasks.results.headline import headline
from tasks.results.leaderboard import ORDER, Leaderboard, read_leaderboard
from tasks.results.numbers import aligned, column_of, number
from tasks.results.verdict import tested_columns, verdict

_DIGIT, _POINT = "\u2007", "\u2008"  # spaces as wide as a digit and as a point
# By the fact that a section shows: its title, and its id in the page.
_SECTIONS = {
    "verdict": ("In one sentence", "result"),
    "run": ("What was run", "run"),
    "findings": ("Findings about the model", "findings"),
    "board": ("Leaderboard", "leaderboard"),
    "charts": ("Pictures of the numbers", "charts"),
    "gallery": ("Gallery", "gallery"),
}


def write_report(run: Run, curves: Chart | None = None) -> Path:
    """Write ``report/index.html`` and return the file.

    A run that is not complete, or was extended since its last summary, gets a report on what is there.

    Parameters
    ----------
    run
        A run in any state.
    curves
        The chart of its curves, if it is drawn already.
    """
    page = report_of(run, curves)
    with replacing(run.page) as partial:
        partial.write_text(page, "utf-8")
    return run.page


def report_of(run: Run, curves: Chart | None = None) -> str:
    """Return the report of a run as HTML; see :func:`write_report`."""
    done = all(map(is_there, (run.summary, run.comparisons, run.costs)))
    board = read_leaderboard(run) if done else None
    table = read_table(run.summary) if done else None
    about, gallery = facts_of(run, table), gallery_of(run)
    facts: dict[str, Any] = {
        "run": about,
        "maps": counted_maps(run, about.statuses, gallery.rows),
        "unscored": [] if table is None else counted_scores(run, table, gallery.rows),
        "verdict": verdict(board) if board else "",
        "board": board,
        "order": ORDER,
        "tested": len(tested_columns(board)) if board else 0,
        "headline": [board.columns[name] for name in headline(run.manifest) if name in board.columns]
        if board
        else [],
        "bounds": {name: _bounds(board, name) for name in board.columns} if board else {},
        "numbers": _numbers(board) if board else {},
        "charts": charts_of(run, curves) if done else [],
        "gallery": gallery,
        "findings": findings_of(run),
    }
    sections = {anchor: title for fact, (title, anchor) in _SECTIONS.items() if facts[fact]}
    return render("report.html", title=run.name, sections=sections, **facts)


def _numbers(board: Leaderboard) -> dict[str, dict[str, str]]:
    """Return the means by column and row, and the times of a map as the column "", with aligned points."""
    rows = (*board.explainers, *board.controls)
    columns = {
        name: {
            row.name: number(row.cells[name].mean, board.decimals(name)) for row in rows if name in row.cells
        }
        for name in board.columns
    }
    times = column_of([row.milliseconds for row in rows])
    columns[""] = dict(zip((row.name for row in rows), times, strict=True))
    return {
        name: dict(zip(own, aligned(list(own.values()), _DIGIT, _POINT), strict=True))
        for name, own in columns.items()
    }


def _bounds(board: Leaderboard, column: str) -> tuple[float, float]:
    """Return the lowest and the highest end of an interval in a column; both are 0 if there is none."""
    cells = [row.cells[column] for row in (*board.explainers, *board.controls) if column in row.cells]
    ends = [end for cell in cells for end in (cell.low, cell.high) if not math.isnan(end)]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)
