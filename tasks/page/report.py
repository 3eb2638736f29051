"""Writes the report of a run: one HTML file that needs no other file and no network."""

from __future__ import annotations

from pathlib import Path

from storage.files import replacing
from storage.parquet import read_table
from storage.places import is_there
from storage.run import Run
from tasks.page.rendering import render
from tasks.page.run_facts import facts_of

STATUSES = {
    "ok": "good",
    "all_zero": "zero everywhere",
    "constant": "constant",
    "not_finite": "with NaN or infinity",
    "failed": "failed",
}
_SECTIONS = [("result", "In one sentence"), ("run", "What was run")]


def write_report(run: Run) -> Path:
    """Write ``report/index.html`` and return the file.

    A run that is not complete, or was extended since its last summary, gets a report on what is there.

    Parameters
    ----------
    run
        A run in any state.
    """
    page = report_of(run)
    with replacing(run.page) as partial:
        partial.write_text(page, "utf-8")
    return run.page


def report_of(run: Run) -> str:
    """Return the report of a run as HTML."""
    summary = read_table(run.summary) if is_there(run.summary) else None
    return render("report.html", run=facts_of(run, summary), sections=_SECTIONS, statuses=STATUSES)
