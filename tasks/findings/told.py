"""The findings of a run in lines of text, as its tables have them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from storage.layout import FOUND
from storage.parquet import read_table
from storage.places import is_there
from storage.run import Run
from tasks.findings.decision import State

SHOWN = (State.FINDING, State.CANDIDATE)  # what is told in a sentence of its own
WITHOUT_OBJECTS = (
    "without boxes or masks nothing is more than a candidate: the object may be in the region; a model that "
    "relies on the cue alone, and a cue in all images of a class, cannot be found"
)


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The rows of ``findings.parquet``; none as long as there is no such file."""
    path = run.root / FOUND[0]
    rows: list[dict[str, Any]] = read_table(path).to_pylist() if is_there(path) else []
    return rows


def lines_of(run: Run) -> list[str]:
    """One line per finding and candidate, and one on all other suspicions; none without a search."""
    if not is_there(run.root / FOUND[0]):
        return []
    rows = rows_of(run)
    lines = [f"{row['status']} ({row['explainer']}): {row['told']}" for row in rows if row["status"] in SHOWN]
    counts = Counter(row["status"] for row in rows if row["status"] not in SHOWN)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    if not lines:
        lines.append("findings: none is confirmed")
    return [*lines, *([f"suspicions besides: {told}"] if told else [])]
