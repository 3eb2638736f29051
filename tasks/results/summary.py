"""Summarises the scores of a run: one row per explainer and metric, and one row per compared pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from explainers.statuses import Status
from storage.parquet import write_table
from storage.run import Run
from storage.scores import read_curves, read_values, sum_curves, with_curve
from tasks.metrics.registry import metrics
from tasks.results.leaderboard import is_control
from tasks.results.nothing import Reasons
from tasks.results.statistics import Floats, PairedScores, result_rows

COMPARISONS = pa.schema(
    [(key, pa.string()) for key in ("metric", "explainer", "against")]
    + [("best", pa.bool_()), ("n", pa.int64())]
    + [(key, pa.float64()) for key in ("difference", "wins", "p_value", "p_holm")]
)
Curved = dict[str, dict[str, NDArray[np.bool_]]]  # which maps have a curve, by explainer and column
_FLAT = (Status.ALL_ZERO.value, Status.CONSTANT.value)


def summarise(run: Run) -> pa.Table:
    """Compute and write ``summary.parquet`` and ``comparisons.parquet``.

    ``comparisons`` has a row for each explainer with the best one and with every control; see
    :func:`tasks.results.statistics.result_rows`.

    Returns
    -------
    pyarrow.Table
        The summary, one row per explainer and metric, with the fields of
        :class:`tasks.results.statistics.MetricSummary` and these columns:

        - ``best``: whether no explainer is better;
        - ``lowest``, ``highest``: the range of the metric, null where it has no end;
        - ``fill``: what the metric perturbs with;
        - ``n``, ``excluded``: how many images are scored, and how many are not;
        - ``excluded_by``: maps without a number, counted by status. A map that is "ok" is excluded if its
          image lacks what the metric needs, such as a box;
        - ``degenerate``: scored maps that are all zero or constant;
        - ``reason``: why no image is scored, null if one is;
        - ``p_value``, ``p_holm``: the comparison with the best explainer.
    """
    tables = {name: read_values(run, name) for name in run.explainers}
    curved = {name: with_curve(run, name, pooled_columns(run)) for name in tables}
    scores = [paired_scores(run, tables, curved, metric) for metric in run.columns]
    summary, compared = result_rows(scores, list(run.explainers), control_pairs(run), run.seed)
    known = {each.metric: each.known for each in scores}
    rows, reasons = [], Reasons(run)
    for row in summary:
        name, about = row["explainer"], run.columns[row["metric"]]
        scored = known[row["metric"]][list(run.explainers).index(name)]
        counts = _counts(run, name, row["metric"], tables, curved)
        nothing = None if scored.any() else reasons.of(name, row["metric"], counts["excluded_by"])
        rows.append(
            row
            | {"lowest": about.low, "highest": about.high, "fill": about.fill}
            | {"n": int(scored.sum()), "excluded": int((~scored).sum())}
            | counts
            | {"reason": nothing}
        )
    table = pa.Table.from_pylist(rows)
    # A column of nulls has no type of its own.
    told = pa.array([row["reason"] for row in rows], pa.string())
    table = table.set_column(table.column_names.index("reason"), "reason", told)
    for path, made in ((run.comparisons, pa.Table.from_pylist(compared, COMPARISONS)), (run.summary, table)):
        write_table(made, path)
    return table


def _counts(
    run: Run, explainer: str, metric: str, tables: dict[str, pa.Table], curved: Curved
) -> dict[str, Any]:
    """Maps without a number, counted by status, and maps with one that are all zero or constant."""
    own = _of_metric(tables[explainer], metric)
    statuses = own["status"].to_numpy()
    scored = np.isfinite(own["value"].to_numpy().astype(np.float64))
    if _pool_of(run, metric):
        scored = curved[explainer].get(metric, np.zeros(len(own), bool))
    return {
        "excluded_by": {
            s.value: int((statuses[~scored] == s.value).sum())
            for s in Status
            if s != Status.NO_LABEL or run.explains_labels
        },
        "degenerate": int(np.isin(statuses[scored], _FLAT).sum()),
    }


def paired_scores(run: Run, tables: dict[str, pa.Table], curved: Curved, column: str) -> PairedScores:
    """The scores of all explainers of a run in one column, on all images in the order of the run.

    Parameters
    ----------
    tables, curved
        By explainer, the results of :func:`storage.scores.read_values` and of
        :func:`storage.scores.with_curve`.
    column
        A column of one of the run's metrics.
    """
    better, pool, names = run.columns[column].better, _pool_of(run, column), list(tables)
    if pool is not None:
        maps = run.rows * run.targets_per_image
        there = [curved[name].get(column, np.zeros(maps, bool)) for name in names]
        known = np.stack([_by_image(run, own).any(1) for own in there])
        nothing = np.empty((len(names), 0))
        return PairedScores(column, better, known, nothing, lambda e: _curves(run, names[e], column), pool)
    values = [_of_metric(table, column)["value"].to_numpy().astype(np.float64) for table in tables.values()]
    each = np.stack([_by_image(run, own) for own in values])
    finite = np.isfinite(each)
    means = np.where(finite, each, 0).sum(2) / finite.sum(2).clip(min=1)
    return PairedScores(column, better, finite.any(2), means)


def _by_image(run: Run, maps: np.ndarray) -> np.ndarray:
    """An array (maps, ...) as (images, targets, ...)."""
    k = run.targets_per_image
    return maps.reshape(len(maps) // k, k, *maps.shape[1:])


def _curves(run: Run, explainer: str, column: str) -> Floats:
    """Curves (images, points), each the mean over the targets of an image; zero where there is no curve."""
    each = _by_image(run, read_curves(run, explainer, column))
    known = (~np.isnan(each)).sum(1).clip(min=1).astype(each.dtype)
    curves: Floats = np.nan_to_num(each, copy=False).sum(1) / known
    return curves


def control_pairs(run: Run) -> list[tuple[int, int]]:
    """All pairs of an explainer and a control of a run, as indices into ``run.explainers``."""
    controls = [i for i, (name, each) in enumerate(run.explainers.items()) if is_control(name, each)]
    return [(i, c) for c in controls for i in range(len(run.explainers)) if i not in controls]


def _of_metric(table: pa.Table, column: str) -> pa.Table:
    return table.filter(pc.equal(table["metric"], column))


def pooled_columns(run: Run) -> set[str]:
    """The columns whose number belongs to the whole dataset and not to single images."""
    return {column for column, about in run.columns.items() if about.pooled}


def _pool_of(run: Run, column: str) -> Callable[[Floats], Floats] | None:
    """The function that turns mean curves into numbers, for a pooled column; otherwise None."""
    if column not in pooled_columns(run):
        return None
    name = next(name for name, entry in run.metrics.items() if column in entry.columns)
    made: Callable[[str, Any], Any] = metrics.get(name).of_mean_curve
    return lambda curves: made(column, torch.from_numpy(np.ascontiguousarray(curves))).double().numpy()


def mean_curves(run: Run) -> dict[tuple[str, str], Floats]:
    """The mean curve over all maps, (points,), by (explainer, column), for columns that have curves."""
    return {
        (explainer, column): total / count
        for explainer in run.explainers
        for column, (total, count) in sum_curves(run, explainer).items()
    }
