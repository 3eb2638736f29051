"""Tables of the run, as Parquet: tidy scores, and what is known about each image.

A stage writes one file a shard; a file is written whole, by rename, and the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.files import replacing, shard_name
from storage.places import for_arrow
from storage.run import Run

SCORES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("target", pa.int64()),  # null where the image has none, because it failed
        pa.field("metric", pa.string(), nullable=False),
        ("value", pa.float64()),  # null where the metric is undefined
        ("curve", pa.list_(pa.float32())),
        pa.field("status", pa.string(), nullable=False),
        ("forward_passes", pa.int64()),  # that the map took; null where the explainer makes none of its own
    ]
)
_FROM_INPUTS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("uri", pa.string()),
        ("label", pa.int64()),
        ("width", pa.int32()),  # of the image as it lies on the disk; tokens of a text before it was cut
        ("height", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.string())),  # of a text, as far as it was read
        ("boxes", pa.list_(pa.list_(pa.float64()))),  # xmin, ymin, xmax, ymax in input pixels
        pa.field("status", pa.string(), nullable=False),
        ("error", pa.string()),
    ]
)
_FROM_ACTIVATIONS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("prediction", pa.int64()),
        ("confidence", pa.float64()),
        ("target", pa.int64()),
        ("targets", pa.list_(pa.int64())),  # the classes explained, the first of them is ``target``
        ("probabilities", pa.list_(pa.float64())),  # of ``targets``
        ("error", pa.string()),  # why a readable input has none of these
    ]
)
SAMPLE_COLUMNS = (
    "sample_id",
    "uri",
    "label",
    "prediction",
    "confidence",
    "target",
    "targets",
    "probabilities",
    "boxes",
    "width",
    "height",
    "text",
    "tokens",
    "status",
    "error",
)


def write_scores(root: Path, explainer: str, shard: int, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write one shard's scores of an explainer, replacing what was there; returns the file.

    Each metric is a row group of its own, so that one can be read alone.

    Parameters
    ----------
    columns
        Equally long columns named as in :data:`SCORES`, metric by metric, as many rows of each.
    """
    path = _score_file(root, explainer, shard)
    table = pa.table(dict(columns), schema=SCORES)
    write_table(table, path, len(table) // max(1, len(pc.unique(table["metric"]))))
    return path


def read_scores(root: Path) -> pa.Table:
    """All scores of a run with the column ``explainer``, by explainer, shard and row."""
    parts = []
    for path in sorted((root / "scores").glob("explainer=*/shard-*.parquet")):
        part = read_table(path)
        explainer = path.parent.name.removeprefix("explainer=")
        parts.append(part.append_column("explainer", pa.repeat(explainer, len(part))))
    return (
        pa.concat_tables(parts) if parts else SCORES.append(pa.field("explainer", pa.string())).empty_table()
    )


def read_values(run: Run, explainer: str) -> pa.Table:
    """All scores of an explainer without their curves, by shard and row.

    Every metric has a row for every map; where a shard was not scored, its value is null and its status
    "failed".
    """
    names = [name for name in SCORES.names if name != "curve"]
    parts = []
    for shard in range(run.shards):
        path = _score_file(run.root, explainer, shard)
        part = read_table(path, names) if path.exists() else SCORES.empty_table().select(names)
        there = set(pc.unique(part["metric"]).to_pylist())
        parts += [
            part,
            *(_unscored(run, shard, metric, names) for metric in run.columns if metric not in there),
        ]
    return pa.concat_tables(parts)


def _unscored(run: Run, shard: int, metric: str, names: list[str]) -> pa.Table:
    """Rows that say that a shard has no score of a metric."""
    samples = read_samples_of_shard(run.root, shard)
    ids = [sample["sample_id"] for sample in samples for _ in range(run.targets_per_image)]
    told = {"sample_id": ids, "metric": [metric] * len(ids), "status": ["failed"] * len(ids)}
    nothing = [None] * len(ids)
    return pa.table({name: told.get(name, nothing) for name in names}, schema=_without_curve(names))


def _without_curve(names: list[str]) -> pa.Schema:
    return pa.schema([SCORES.field(name) for name in names])


def read_curves(run: Run, explainer: str, metric: str) -> NDArray[np.float32]:
    """(maps, points) curves of one metric, by shard and row; rows of NaN where there is none.

    There are no points if no map has a curve.
    """
    parts = []
    for shard in range(run.shards):
        start, stop = run.rows_of(shard)
        part = _curves_in(_score_file(run.root, explainer, shard), {metric}).get(metric)
        parts.append(np.full((stop - start, 0), np.nan, np.float32) if part is None else part)
    points = max(part.shape[1] for part in parts)
    nothing = [np.full((len(part), points - part.shape[1]), np.nan, np.float32) for part in parts]
    return np.concatenate([np.concatenate(both, 1) for both in zip(parts, nothing, strict=True)])


def with_curve(run: Run, explainer: str, metrics: Set[str]) -> dict[str, NDArray[np.bool_]]:
    """Of each of ``metrics`` that has curves which maps have one, (maps,), by shard and row."""
    found: dict[str, NDArray[np.bool_]] = {}
    for shard in range(run.shards):
        start, stop = run.rows_of(shard)
        for metric, curves in _curves_in(_score_file(run.root, explainer, shard), metrics).items():
            maps = found.setdefault(metric, np.zeros(run.rows * run.targets_per_image, bool))
            maps[start:stop] = ~np.isnan(curves[:, 0])
    return found


def sum_curves(run: Run, explainer: str) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Of every metric that has curves their sum over the maps that have one, (points,), and how many do."""
    found: dict[str, tuple[NDArray[np.float64], int]] = {}
    for shard in range(run.shards):
        for metric, curves in _curves_in(_score_file(run.root, explainer, shard)).items():
            known = curves[~np.isnan(curves[:, 0])].astype(np.float64)
            total, count = found.get(metric, (np.zeros(curves.shape[1]), 0))
            found[metric] = total + known.sum(0), count + len(known)
    return found


def _curves_in(path: Path, wanted: Set[str] | None = None) -> dict[str, NDArray[np.float32]]:
    """The curves in one file, (maps, points) of each wanted metric that has any, with rows of NaN."""
    found: dict[str, NDArray[np.float32]] = {}
    if not path.exists():
        return found
    with _opened(path) as file:
        for group in range(file.num_row_groups):  # one a metric, see write_scores
            metric = file.read_row_group(group, ["metric"])["metric"][0].as_py()
            if wanted is not None and metric not in wanted:
                continue
            column = file.read_row_group(group, ["curve"])["curve"].combine_chunks()
            there = pc.is_valid(column).to_numpy(zero_copy_only=False)
            if there.any():
                flat = column.flatten().to_numpy(zero_copy_only=False).reshape(int(there.sum()), -1)
                found[metric] = np.full((len(column), flat.shape[1]), np.nan, np.float32)
                found[metric][there] = flat
    return found


def write_sample_inputs(root: Path, shard: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write what the inputs stage knows about a shard's images, in row order; returns the file.

    Keys: sample_id, uri, label, width, height, boxes, text, tokens, status, error; those that are left out
    are null.
    """
    return _write_part(root, "inputs", shard, pa.Table.from_pylist(list(rows), _FROM_INPUTS))


def write_sample_predictions(root: Path, shard: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write what the activations stage knows about a shard's images, in row order; returns the file.

    Keys: sample_id, prediction, confidence, target, targets, probabilities, error; who has an error has none
    of the others, and fails for it.
    """
    return _write_part(root, "activations", shard, pa.Table.from_pylist(list(rows), _FROM_ACTIVATIONS))


def read_sample_inputs(root: Path, shard: int) -> list[dict[str, Any]]:
    """The rows :func:`write_sample_inputs` wrote."""
    rows: list[dict[str, Any]] = read_table(_part(root, "inputs", shard)).to_pylist()
    return rows


def read_samples_of_shard(root: Path, shard: int) -> list[dict[str, Any]]:
    """What both stages know about a shard's images, a row an image."""
    rows: list[dict[str, Any]] = _joined(root, shard).to_pylist()
    return rows


def merge_samples(root: Path) -> Path:
    """Write ``samples.parquet``, a row an image, from the parts of all shards; returns it.

    Raises
    ------
    ValueError
        If no shard is there, or the two parts of one are about different images.
    """
    names = sorted(path.stem for path in (root / "samples" / "inputs").glob("shard-*.parquet"))
    if not names:
        raise ValueError(f"{root} has no samples yet: the inputs stage has not run")
    shards = [int(name.removeprefix("shard-")) for name in names]
    path = root / "samples.parquet"
    write_table(pa.concat_tables([_joined(root, shard) for shard in shards]), path)
    return path


def read_samples(root: Path) -> list[dict[str, Any]]:
    """The rows of ``samples.parquet``, in the order of the arrays."""
    rows: list[dict[str, Any]] = read_table(root / "samples.parquet").to_pylist()
    return rows


def _score_file(root: Path, explainer: str, shard: int) -> Path:
    return root / "scores" / f"explainer={explainer}" / shard_name(shard, "parquet")


def _part(root: Path, stage: str, shard: int) -> Path:
    return root / "samples" / stage / shard_name(shard, "parquet")


def _write_part(root: Path, stage: str, shard: int, table: pa.Table) -> Path:
    path = _part(root, stage, shard)
    write_table(table, path)
    return path


def _joined(root: Path, shard: int) -> pa.Table:
    """Both parts of a shard side by side; they list the same images in the same order."""
    table, other = read_table(_part(root, "inputs", shard)), read_table(_part(root, "activations", shard))
    if not table["sample_id"].equals(other["sample_id"]):
        raise ValueError(f"shard {shard} of {root}: the inputs and the activations are of different images")
    if "error" in other.column_names:  # otherwise written before there was such a column
        status = pc.if_else(pc.is_valid(other["error"]), "failed", table["status"])
        error = pc.coalesce(other["error"], table["error"])
        table, other = table.drop_columns(["status", "error"]), other.drop_columns(["error"])
        for name, column in (("status", status), ("error", error)):
            table = table.append_column(_FROM_INPUTS.field(name), column)
    for name in other.column_names[1:]:
        table = table.append_column(name, other[name])
    for field in (*_FROM_INPUTS, *_FROM_ACTIVATIONS):
        if field.name not in table.column_names:  # written before there was such a column
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(SAMPLE_COLUMNS)


def write_table(table: pa.Table, path: Path, group: int | None = None) -> None:
    """Write a table as Parquet, whole or not at all, in row groups of ``group`` rows where given."""
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=group)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file of the run, or some columns of it."""
    # pq.read_table would take explainer=... in the path for a column of the file.
    with _opened(path) as file:
        return file.read(columns)


def _opened(path: Path) -> pq.ParquetFile:
    source, filesystem = for_arrow(path)
    return pq.ParquetFile(source, filesystem=filesystem)
