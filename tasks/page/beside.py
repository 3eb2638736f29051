"""Runs beside each other: what their models predict for the same inputs, and how their scores differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage.manifest import MetricEntry
from storage.run import Run
from tasks.page.catalog import Catalog
from tasks.page.expressions import reference
from tasks.results.headline import headline


@dataclass(frozen=True)
class Difference:
    """A score of an explainer that two runs have: the first run's, the other's, and the other's less it."""

    run: str
    explainer: str
    metric: str
    first: float | None
    other: float | None

    @property
    def less(self) -> float | None:
        """The other score less the first; None where one is missing."""
        return None if self.first is None or self.other is None else self.other - self.first


def compared(first: Run, other: Run) -> list[str]:
    """The headline columns with a number per sample that both runs measure with the same settings."""
    one, two = _entries(first), _entries(other)
    return [
        column
        for column in headline(first.manifest)
        if not first.columns[column].pooled and column in two and one[column] == two[column]
    ]


def _entries(run: Run) -> dict[str, MetricEntry]:
    """The metric of each column."""
    return {column: entry for entry in run.metrics.values() for column in entry.columns}


def questions(catalog: Catalog) -> list[tuple[str, str]]:
    """Conditions in SQL that set the other models against the first one, and what they are in words."""
    first, *others = catalog.runs
    found = []
    for other in others:
        right = reference(other, "correct")
        found += [
            (f"{first} and {other} right", f"correct AND {right}"),
            (f"only {first} right", f"correct AND NOT {right}"),
            (f"only {other} right", f"NOT correct AND {right}"),
            (f"{first} and {other} wrong", f"NOT correct AND NOT {right}"),
            (f"{other} predicts another class", f"prediction <> {reference(other, 'prediction')}"),
        ]
    return found


def predictions(catalog: Catalog, rows: Sequence[int]) -> list[list[dict[str, Any]]]:
    """What each model predicts for some samples, run by run; nothing for a run that does not have one."""
    columns, places = ["prediction", "prediction_name", "confidence", "correct"], pa.array(rows, pa.int64())
    found: list[list[dict[str, Any]]] = [[] for _ in rows]
    for name, table in {next(iter(catalog.runs)): catalog.samples, **catalog.facts}.items():
        told = table.select(columns).take(places).to_pylist()
        for own, row, each in zip(found, rows, told, strict=True):
            if catalog.row_in(name, row) is not None:
                own.append({"run": name, **each})
    return found


def differences(catalog: Catalog, row: int) -> list[Difference]:
    """The headline scores of a sample that the first run and another have of the same explainer."""
    first, *others = catalog.runs.items()
    return [
        Difference(
            name,
            explainer,
            metric,
            catalog.scores(explainer, metric)[row].as_py(),
            catalog.scores(f"{name}/{explainer}", metric)[row].as_py(),
        )
        for name, run in others
        if catalog.row_in(name, row) is not None
        for metric in compared(first[1], run)
        for explainer in first[1].explainers
        if explainer in run.explainers
    ]
