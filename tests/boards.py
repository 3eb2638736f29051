"""Made leaderboards and manifests for the tests of what is said about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from storage.manifest import ColumnEntry, ExplainerEntry, Manifest, MetricEntry
from tasks.results.leaderboard import BoardColumn, Cell, Leaderboard, Row

Over = Mapping[str, bool | None]


def column(name: str, better: str | None = "higher", **more: Any) -> ColumnEntry:
    """A column in [0, 1]."""
    return ColumnEntry(**{"name": name, "low": 0.0, "high": 1.0, "better": better} | more)


def manifest(
    explainers: Sequence[str], metrics: Mapping[str, Sequence[ColumnEntry]], **changes: Any
) -> Manifest:
    """The manifest of a run with these explainers and metrics."""
    keys: dict[str, Any] = {
        "job": {},
        "identity": {},
        "versions": {},
        "model_fingerprint": "",
        "dataset_fingerprint": "",
        "rows": 100,
        "shard_rows": 10,
        "input_shape": (1, 8, 8),
        "explainers": {name: ExplainerEntry(parameters={}, grid=(8, 8)) for name in explainers},
        "metrics": {
            name: MetricEntry(parameters={}, columns={each.name: each for each in columns})
            for name, columns in metrics.items()
        },
    }
    return Manifest(**keys | changes)


def cell(n: int = 100, over: Over | None = None) -> Cell:
    """A cell; without images it has no value."""
    mean = 0.5 if n else nan
    return Cell(mean, mean, mean, n, fewer=False, best=False, over=over or {}, reason=None)


def board(
    over: Mapping[str, Mapping[str, Over]],
    controls: Sequence[str],
    n: int | Mapping[str, int] = 100,
    pooled: Sequence[str] = (),
    inputs: str = "images",
) -> Leaderboard:
    """A leaderboard from what each explainer has over each control, by explainer and column."""
    names = list(dict.fromkeys(name for own in over.values() for name in own))
    counts = {name: n if isinstance(n, int) else n[name] for name in names}
    return Leaderboard(
        {name: BoardColumn(name, "higher", counts[name], None, {}, name in pooled) for name in names},
        [Row(e, {c: cell(counts[c], won) for c, won in own.items()}, None) for e, own in over.items()],
        [Row(c, {name: cell(counts[name]) for name in names}, None) for c in controls],
        max(counts.values(), default=0),
        inputs,
    )
