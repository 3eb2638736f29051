"""What a run's scores amount to: one row per explainer and metric, and one per pair that is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from explainers.base import Status
from explainers.controls import CONTROLS
from storage.run import Run
from storage.scores import read_curves, read_values, sum_curves, with_curve, write_table
from tasks.metrics.registry import metrics
from tasks.results.statistics import Contest, Floats, rows_of

COMPARISONS = pa.schema(
    [(key, pa.string()) for key in ("metric", "explainer", "against")]
    + [("best", pa.bool_()), ("n", pa.int64())]
    + [(key, pa.float64()) for key in ("difference", "wins", "p_value", "p_holm")]
)
Curved = dict[str, dict[str, NDArray[np.bool_]]]  # by explainer and metric: which maps have a curve
_FLAT = (Status.ALL_ZERO.value, Status.CONSTANT.value)


def summarise(run: Run) -> pa.Table:
    """Compute ``summary.parquet``, which is returned, and ``comparisons.parquet``.

    ``summary``: one row per explainer and metric with the fields of
    :class:`tasks.results.statistics.Standing`; ``best`` says whether none is better; ``lowest``, ``highest``
    and ``fill`` are the metric's range (null where it has no end) and what it perturbs with; ``n`` images are
    scored and ``excluded`` are not; ``excluded_by`` counts maps by their status (one that is "ok" is excluded
    where its image lacks what the metric needs, a box say) and ``degenerate`` those scored that are all zero
    or constant; ``p_value`` and ``p_holm`` compare with the best explainer.

    ``comparisons``: each explainer with the best one and with every control, see
    :func:`tasks.results.statistics.rows_of`.
    """
    tables = {name: read_values(run, name) for name in run.explainers}
    curved = {name: with_curve(run, name, pooled_columns(run)) for name in tables}
    contests = [contest_of(run, tables, curved, metric) for metric in run.columns]
    standing, compared = rows_of(contests, list(run.explainers), against_controls(run), run.seed)
    known = {contest.metric: contest.known for contest in contests}
    rows = []
    for row in standing:
        name, about = row["explainer"], run.columns[row["metric"]]
        scored = known[row["metric"]][list(run.explainers).index(name)]
        rows.append(
            row
            | {"lowest": about["low"], "highest": about["high"], "fill": about["fill"]}
            | {"n": int(scored.sum()), "excluded": int((~scored).sum())}
            | _counts(run, name, row["metric"], tables, curved)
        )
    table = pa.Table.from_pylist(rows)
    for path, made in ((run.comparisons, pa.Table.from_pylist(compared, COMPARISONS)), (run.summary, table)):
        write_table(made, path)
    return table


def _counts(
    run: Run, explainer: str, metric: str, tables: dict[str, pa.Table], curved: Curved
) -> dict[str, Any]:
    """Maps that have no number, by status, and those that have one and are flat."""
    own = _of_metric(tables[explainer], metric)
    statuses = own["status"].to_numpy()
    scored = np.isfinite(own["value"].to_numpy().astype(np.float64))
    if _pool_of(run, metric):
        scored = curved[explainer].get(metric, np.zeros(len(own), bool))
    return {
        "excluded_by": {s.value: int((statuses[~scored] == s.value).sum()) for s in Status},
        "degenerate": int(np.isin(statuses[scored], _FLAT).sum()),
    }


def contest_of(run: Run, tables: dict[str, pa.Table], curved: Curved, column: str) -> Contest:
    """One number of all explainers of a run, on all of its images in their order.

    ``tables`` and ``curved`` are what :func:`storage.scores.read_values` and
    :func:`storage.scores.with_curve` say of every explainer.
    """
    better, pool, names = run.columns[column]["better"], _pool_of(run, column), list(tables)
    if pool is not None:
        maps = run.rows * run.targets_per_image
        there = [curved[name].get(column, np.zeros(maps, bool)) for name in names]
        known = np.stack([_by_image(run, own).any(1) for own in there])
        nothing = np.empty((len(names), 0))
        return Contest(column, better, known, nothing, lambda e: _curves(run, names[e], column), pool)
    values = [_of_metric(table, column)["value"].to_numpy().astype(np.float64) for table in tables.values()]
    each = np.stack([_by_image(run, own) for own in values])
    finite = np.isfinite(each)
    means = np.where(finite, each, 0).sum(2) / finite.sum(2).clip(min=1)
    return Contest(column, better, finite.any(2), means)


def _by_image(run: Run, maps: np.ndarray) -> np.ndarray:
    """(images, targets, ...) of (maps, ...)."""
    k = run.targets_per_image
    return maps.reshape(len(maps) // k, k, *maps.shape[1:])


def _curves(run: Run, explainer: str, column: str) -> Floats:
    """(images, points) curves, each the mean over an image's targets; zero where there is none."""
    each = _by_image(run, read_curves(run, explainer, column))
    known = (~np.isnan(each)).sum(1).clip(min=1).astype(each.dtype)
    curves: Floats = np.nan_to_num(each, copy=False).sum(1) / known
    return curves


def against_controls(run: Run) -> list[tuple[int, int]]:
    """Positions of each explainer of a run and each of its controls."""
    controls = [i for i, name in enumerate(run.explainers) if name in CONTROLS]
    return [(i, c) for c in controls for i in range(len(run.explainers)) if i not in controls]


def _of_metric(table: pa.Table, column: str) -> pa.Table:
    return table.filter(pc.equal(table["metric"], column))


def pooled_columns(run: Run) -> set[str]:
    """The columns that are numbers of the whole dataset."""
    return {column for column, about in run.columns.items() if about.get("pooled")}


def _pool_of(run: Run, column: str) -> Callable[[Floats], Floats] | None:
    """What makes a number of mean curves, where the metric's column is such a number."""
    if column not in pooled_columns(run):
        return None
    name = next(name for name, entry in run.metrics.items() if column in entry["columns"])
    made: Callable[[str, Any], Any] = metrics.get(name).of_mean_curve
    return lambda curves: made(column, torch.from_numpy(np.ascontiguousarray(curves))).double().numpy()


def mean_curves(run: Run) -> dict[tuple[str, str], Floats]:
    """Mean curve over the maps of every (explainer, metric) that has curves."""
    return {
        (explainer, column): total / count
        for explainer in run.explainers
        for column, (total, count) in sum_curves(run, explainer).items()
    }
