"""What a run's scores amount to: one row per explainer and metric, and one per pair that is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from explainers.base import Status
from explainers.controls import CONTROLS
from storage.files import replacing
from storage.run import Run
from storage.scores import read_curves, read_values
from tasks.metrics.registry import metrics
from tasks.statistics import Contest, Floats, rows_of

_FLAT = (Status.ALL_ZERO.value, Status.CONSTANT.value)


def summarise(run: Run) -> pa.Table:
    """Compute ``summary.parquet``, which is returned, and ``comparisons.parquet``.

    ``summary``: one row per explainer and metric with the fields of :class:`tasks.statistics.Standing`;
    ``best`` says whether it is the best; ``lowest``, ``highest`` and ``fill`` are the metric's range and what
    it perturbs with; ``n`` maps are scored and ``excluded`` are not, ``excluded_by`` status of the map (a
    map that is "ok" is excluded where its sample lacks what the metric needs, a box say); ``degenerate`` of
    those scored are all zero or constant; ``p_value`` and ``p_holm`` compare with the best explainer.

    ``comparisons``: each explainer with the best one and with every control, see
    :func:`tasks.statistics.rows_of`.
    """
    tables = {name: read_values(run, name) for name in run.explainers}
    contests = [contest_of(run, metric, tables) for metric in run.columns]
    standing, compared = rows_of(contests, list(run.explainers), against_controls(run), run.seed)
    known = {contest.metric: contest.known for contest in contests}
    rows = []
    for row in standing:
        about = run.columns[row["metric"]]
        scored = known[row["metric"]][list(run.explainers).index(row["explainer"])]
        statuses = _of_metric(tables[row["explainer"]], row["metric"])["status"].to_numpy()
        rows.append(
            row
            | {"lowest": about["low"], "highest": about["high"]}
            | {"fill": about["fill"], "n": int(scored.sum()), "excluded": int((~scored).sum())}
            | {"excluded_by": {s.value: int((statuses[~scored] == s.value).sum()) for s in Status}}
            | {"degenerate": int(np.isin(statuses[scored], _FLAT).sum())}
        )
    table = pa.Table.from_pylist(rows)
    for path, made in ((run.comparisons, pa.Table.from_pylist(compared)), (run.summary, table)):
        with replacing(path) as partial:
            pq.write_table(made, partial)
    return table


def against_controls(run: Run) -> list[tuple[int, int]]:
    """Positions of each explainer of a run and each of its controls."""
    controls = [i for i, name in enumerate(run.explainers) if name in CONTROLS]
    return [(i, c) for c in controls for i in range(len(run.explainers)) if i not in controls]


def contest_of(run: Run, column: str, tables: dict[str, pa.Table]) -> Contest:
    """One number of all explainers of a run, on all of its maps in their order."""
    better, pool = run.columns[column]["better"], _pool_of(run, column)
    values = [_of_metric(table, column)["value"].to_numpy() for table in tables.values()]
    curves = [read_curves(run, name, column) for name in tables] if pool else []
    return Contest(column, better, np.stack(values).astype(np.float64), curves, pool)


def _of_metric(table: pa.Table, column: str) -> pa.Table:
    return table.filter(pc.equal(table["metric"], column))


def _pool_of(run: Run, column: str) -> Callable[[Floats], Floats] | None:
    """What makes a number of mean curves, where the metric's column is such a number."""
    if run.columns[column]["pooled"] is None:
        return None
    name = next(name for name, entry in run.metrics.items() if column in entry["columns"])
    of_mean_curve: Callable[[str, Any], Any] = metrics.get(name).of_mean_curve
    return lambda curves: of_mean_curve(column, torch.from_numpy(curves)).double().numpy()


def mean_curves(run: Run) -> dict[tuple[str, str], Floats]:
    """Mean curve over the maps of every (explainer, metric) that has curves."""
    found = {}
    for explainer in run.explainers:
        for column in run.columns:
            curves = read_curves(run, explainer, column)
            known = curves[~np.isnan(curves[:, 0])] if curves.shape[1] else curves
            if known.size:
                found[explainer, column] = known.mean(0)
    return found
