"""The scores of a run: one Parquet file per shard and explainer, with one row per map and number.

The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.files import UnreadableError
from storage.layout import score_file
from storage.parquet import opened, read_table, write_table
from storage.run import Run
from storage.samples import read_samples_of_shard

SCORES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("target", pa.int64()),  # null if the image has no target, because it failed
        pa.field("metric", pa.string(), nullable=False),
        ("value", pa.float64()),  # null if the metric is undefined
        ("curve", pa.list_(pa.float32())),
        pa.field("status", pa.string(), nullable=False),
        ("forward_passes", pa.int64()),  # number for the map; null if the explainer makes none of its own
    ]
)


def write_scores(root: Path, explainer: str, shard: int, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write an explainer's scores of one shard, and replace an existing file; return the file.

    Each metric is a row group of its own, so that a metric can be read alone.

    Parameters
    ----------
    columns
        Columns of equal length, named as in :data:`SCORES`. The rows are sorted by metric, and every metric
        has the same number of rows.
    """
    path = _score_file(root, explainer, shard)
    table = pa.table(dict(columns), schema=SCORES)
    write_table(table, path, len(table) // max(1, len(pc.unique(table["metric"]))))
    return path


def read_values(run: Run, explainer: str) -> pa.Table:
    """Read all scores of an explainer without their curves, by shard and row.

    Every metric has a row for every map. In a shard that was not scored, the value is null and the status is
    "failed".
    """
    names = [name for name in SCORES.names if name != "curve"]
    parts = []
    for shard in range(run.shards):
        path = _score_file(run.root, explainer, shard)
        part = read_table(path, names, SCORES) if path.exists() else SCORES.empty_table().select(names)
        there = _metrics_in(path, part, run.rows_of(shard))
        parts += [
            part,
            *(_unscored(run, shard, metric, names) for metric in run.columns if metric not in there),
        ]
    return pa.concat_tables(parts)


def read_shard_values(run: Run, explainer: str, shard: int) -> dict[str, list[float | None]]:
    """Read an explainer's scores of a shard, by column of the run: one per map, None where there is none."""
    path, (start, stop) = _score_file(run.root, explainer, shard), run.rows_of(shard)
    found: dict[str, list[float | None]] = {column: [None] * (stop - start) for column in run.columns}
    if path.exists():
        part = read_table(path, ["metric", "value"], _without_curve(["metric", "value"]))
        for metric in sorted(_metrics_in(path, part, (start, stop)) & found.keys()):
            found[metric] = part.filter(pc.equal(part["metric"], metric))["value"].to_pylist()
    return found


def _metrics_in(path: Path, part: pa.Table, rows: tuple[int, int]) -> set[str]:
    """Return the metrics of a part; raise UnreadableError if one has not a row for each of the shard's."""
    counts = {item["values"]: item["counts"] for item in pc.value_counts(part["metric"]).to_pylist()}
    if any(count != rows[1] - rows[0] for count in counts.values()):
        raise UnreadableError(f"{path} has other rows than its shard; run the job again to repair it")
    return set(counts)


def _unscored(run: Run, shard: int, metric: str, names: list[str]) -> pa.Table:
    """Return rows with the status "failed" for a shard that has no score of a metric."""
    samples = read_samples_of_shard(run.root, shard)
    ids = [sample["sample_id"] for sample in samples for _ in range(run.targets_per_image)]
    told = {"sample_id": ids, "metric": [metric] * len(ids), "status": ["failed"] * len(ids)}
    nothing = [None] * len(ids)
    return pa.table({name: told.get(name, nothing) for name in names}, schema=_without_curve(names))


def _without_curve(names: list[str]) -> pa.Schema:
    """Return the schema of some columns of the scores."""
    return pa.schema([SCORES.field(name) for name in names])


def read_numbers(run: Run, explainer: str, columns: Set[str]) -> dict[str, NDArray[np.float64]]:
    """Read some columns of an explainer, each as :func:`read_score` does; every file is opened once."""
    found = {name: np.full(run.rows * run.targets_per_image, np.nan) for name in columns}
    for shard in range(run.shards):
        path = _score_file(run.root, explainer, shard)
        start, stop = run.rows_of(shard)
        for metric, group, file in _groups(path):
            if metric in found:
                values = file.read_row_group(group, ["value"])["value"].to_numpy()
                if len(values) != stop - start:
                    raise UnreadableError(
                        f"{path} has other rows than its shard; run the job again to repair it"
                    )
                found[metric][start:stop] = values
    return found


def read_curves_at(
    run: Run, explainer: str, metrics: Set[str], rows: Sequence[int]
) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Read the curves of single maps, of the metrics that have curves.

    Parameters
    ----------
    rows
        Rows of maps.

    Returns
    -------
    dict
        By metric and row, (points,) float32; a map without a curve is left out.
    """
    found: dict[str, dict[int, NDArray[np.float32]]] = {}
    for shard in sorted({row // (run.manifest.shard_rows * run.targets_per_image) for row in rows}):
        start, stop = run.rows_of(shard)
        for metric, curves in _curves_in(_score_file(run.root, explainer, shard), metrics).items():
            own = {row: curves[row - start] for row in rows if start <= row < stop}
            kept = {row: curve for row, curve in own.items() if not np.isnan(curve[0])}
            found.setdefault(metric, {}).update(kept)
    return found


def read_curves(run: Run, explainer: str, metric: str) -> NDArray[np.float32]:
    """Read the curves of one metric, by shard and row.

    Returns
    -------
    array
        (maps, points) float32; a map without a curve is a row of NaN. ``points`` is 0 if no map has a curve.
    """
    parts = []
    for shard in range(run.shards):
        start, stop = run.rows_of(shard)
        part = _curves_in(_score_file(run.root, explainer, shard), {metric}).get(metric)
        parts.append(np.full((stop - start, 0), np.nan, np.float32) if part is None else part)
    # A shard without curves has no points, so it is filled up with NaN.
    points = max(part.shape[1] for part in parts)
    nothing = [np.full((len(part), points - part.shape[1]), np.nan, np.float32) for part in parts]
    return np.concatenate([np.concatenate(both, 1) for both in zip(parts, nothing, strict=True)])


def read_score(run: Run, explainer: str, metric: str) -> NDArray[np.float64]:
    """Read one metric of an explainer, (maps,) float64 by shard and row; NaN where a map has no value."""
    return read_numbers(run, explainer, {metric})[metric]


def _metric_of(file: Any, group: int) -> str:
    """Return the metric of a row group, from its statistics, which are read already, if it has them."""
    facts = file.metadata.row_group(group).column(file.schema_arrow.get_field_index("metric")).statistics
    if facts is not None and facts.has_min_max:
        return str(facts.min)
    return str(file.read_row_group(group, ["metric"])["metric"][0].as_py())


def _has_no_curve(file: Any, group: int) -> bool:
    """Whether no map of a row group has a curve, as its statistics say, which are read already."""
    about = file.metadata.row_group(group).column(file.schema_arrow.get_field_index("curve"))
    nulls = about.statistics.null_count if about.is_stats_set and about.statistics.has_null_count else None
    return bool(about.path_in_schema.startswith("curve.") and nulls == about.num_values)


def with_curve(run: Run, explainer: str, metrics: Set[str]) -> dict[str, NDArray[np.bool_]]:
    """Return which maps have a curve, for each of ``metrics`` that has curves.

    Returns
    -------
    dict
        (maps,) bool by metric, by shard and row.
    """
    found: dict[str, NDArray[np.bool_]] = {}
    for shard in range(run.shards):
        start, stop = run.rows_of(shard)
        for metric, curves in _curves_in(_score_file(run.root, explainer, shard), metrics).items():
            maps = found.setdefault(metric, np.zeros(run.rows * run.targets_per_image, bool))
            maps[start:stop] = ~np.isnan(curves[:, 0])
    return found


def sum_curves(run: Run, explainer: str) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Return the sum of the curves of each metric that has curves.

    Returns
    -------
    dict
        By metric: the sum over the maps that have a curve, (points,) float64, and the number of these maps.
    """
    found: dict[str, tuple[NDArray[np.float64], int]] = {}
    for metric, curves in each_curve(run, explainer):
        # A map without a curve is a whole row of NaN, so its first point is enough.
        known = curves[~np.isnan(curves[:, 0])].astype(np.float64)
        total, count = found.get(metric, (np.zeros(curves.shape[1]), 0))
        found[metric] = total + known.sum(0), count + len(known)
    return found


def each_curve(
    run: Run, explainer: str, wanted: Set[str] | None = None
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the curves of every metric that has curves, shard by shard.

    Parameters
    ----------
    wanted
        Names of metrics; None stands for all.

    Yields
    ------
    metric, curves
        (maps of the shard, points) float32; a map without a curve is a row of NaN.
    """
    for shard in range(run.shards):
        yield from _curves_in(_score_file(run.root, explainer, shard), wanted).items()


def _curves_in(path: Path, wanted: Set[str] | None = None) -> dict[str, NDArray[np.float32]]:
    """Read the curves in one file.

    The result has (maps, points) float32 for each wanted metric that has a curve; a map without a curve is a
    row of NaN. None stands for all metrics.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for metric, group, file in _groups(path):
        if (wanted is not None and metric not in wanted) or _has_no_curve(file, group):
            continue
        column = file.read_row_group(group, ["curve"])["curve"].combine_chunks()
        there = pc.is_valid(column).to_numpy(zero_copy_only=False)
        if there.any():
            flat = column.flatten().to_numpy(zero_copy_only=False).reshape(int(there.sum()), -1)
            found[metric] = np.full((len(column), flat.shape[1]), np.nan, np.float32)
            found[metric][there] = flat
    return found


def _groups(path: Path) -> Iterator[tuple[str, int, pq.ParquetFile]]:
    """Yield each metric of a file, its row group, and the open file; nothing if there is no such file."""
    if not path.exists():
        return
    with opened(path) as file:
        for group in range(file.num_row_groups):  # one per metric, see write_scores
            yield _metric_of(file, group), group, file


def _score_file(root: Path, explainer: str, shard: int) -> Path:
    """Return the file of an explainer's scores of one shard."""
    return root / score_file(explainer, shard)
