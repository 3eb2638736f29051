"""Facts about each image of a run: one Parquet file per shard and stage, merged at the end.

The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.layout import sample_part
from storage.parquet import read_table, rows_of, write_table, write_tables

_FROM_INPUTS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("uri", pa.string()),
        ("label", pa.int64()),  # the model's class; null if the dataset's images may have several
        ("labels", pa.list_(pa.int64())),  # all labels, the model's classes
        ("label_name", pa.string()),  # as the dataset names it
        ("width", pa.int32()),  # pixels of the image, upright; for a text, its tokens before it was cut
        ("height", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.string())),  # the tokens of a text that were read
        ("boxes", pa.list_(pa.list_(pa.float64()))),  # each (xmin, ymin, xmax, ymax) in input pixels
        ("box_labels", pa.list_(pa.int64())),  # the model's class of each box; null: whatever is explained
        ("notes", pa.list_(pa.string())),  # what was done to the image, see storage.datasets.notes
        pa.field("status", pa.string(), nullable=False),
        ("error", pa.string()),
    ]
)
_FROM_ACTIVATIONS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("label_name", pa.string()),  # as the model names it, or else as the dataset does
        ("prediction", pa.int64()),
        ("prediction_name", pa.string()),
        ("confidence", pa.float64()),
        ("target", pa.int64()),
        ("targets", pa.list_(pa.int64())),  # the explained classes; the first one is ``target``
        ("target_names", pa.list_(pa.string())),  # the names of ``targets``; null if the model has none
        ("probabilities", pa.list_(pa.float64())),  # the probabilities of ``targets``
        ("error", pa.string()),  # the reason why a readable input has none of these
    ]
)
SAMPLE_COLUMNS = (
    "sample_id",
    "uri",
    "label",
    "label_name",
    "labels",
    "prediction",
    "prediction_name",
    "confidence",
    "target",
    "targets",
    "target_names",
    "probabilities",
    "boxes",
    "box_labels",
    "width",
    "height",
    "text",
    "tokens",
    "notes",
    "status",
    "error",
)
_ADDED = frozenset(["labels", "box_labels"])  # columns that runs of earlier versions lack
_MERGED = pa.schema(list({field.name: field for field in (*_FROM_ACTIVATIONS, *_FROM_INPUTS)}.values()))


def write_sample_inputs(root: Path, shard: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the facts that the stage inputs knows about a shard's images; return the file.

    Parameters
    ----------
    rows
        One mapping per image, in row order, with the keys sample_id, uri, label, labels, label_name, width,
        height, boxes, box_labels, text, tokens, notes, status and error. A key that is left out becomes null.
    """
    return _write_part(root, "inputs", shard, pa.Table.from_pylist(list(rows), _FROM_INPUTS))


def write_sample_predictions(root: Path, shard: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the facts that the stage activations knows about a shard's images; return the file.

    Parameters
    ----------
    rows
        One mapping per image, in row order, with the keys sample_id, label_name, prediction, prediction_name,
        confidence, target, targets, target_names, probabilities and error. An image with an error has none of
        the other facts, except for the name of its label, and counts as failed.
    """
    return _write_part(root, "activations", shard, pa.Table.from_pylist(list(rows), _FROM_ACTIVATIONS))


def read_sample_inputs(root: Path, shard: int) -> list[dict[str, Any]]:
    """Read the rows that :func:`write_sample_inputs` wrote."""
    rows: list[dict[str, Any]] = _read_part(root, "inputs", shard).to_pylist()
    return rows


def read_samples_of_shard(root: Path, shard: int) -> list[dict[str, Any]]:
    """Read the facts of both stages about a shard's images, one row per image."""
    rows: list[dict[str, Any]] = _joined(root, shard).to_pylist()
    return rows


def read_columns_of_shard(root: Path, shard: int, columns: list[str]) -> pa.Table:
    """Read some columns of what :func:`read_samples_of_shard` returns."""
    return _joined(root, shard).select(columns)


def read_hits(root: Path, shards: int) -> tuple[int, int, bool]:
    """Count the images of a run that have a label and a prediction, and those whose prediction is a label.

    Parameters
    ----------
    shards
        Number of shards of the run.

    Returns
    -------
    labelled, correct
        Numbers of images.
    several
        Whether the images may have several labels.
    """
    labelled = correct = 0
    several = False
    for shard in range(shards):
        known, found = _both(root, shard, ["sample_id", "label", "labels"], ["sample_id", "prediction"])
        equal = pc.equal(known["label"], found["prediction"])  # null where one of the two is missing
        labelled += len(equal) - equal.null_count
        correct += pc.sum(equal).as_py() or 0
        # A list without a single label: the image may have any number of them.
        alone = pc.is_null(known["label"])
        lists = known["labels"].filter(alone).combine_chunks()
        images = pc.list_parent_indices(lists)  # of every label in a list
        predictions = found["prediction"].filter(alone).combine_chunks().take(images)
        hits = pc.equal(pc.list_flatten(lists), predictions)
        labelled += pc.count_distinct(images.filter(pc.is_valid(predictions))).as_py()
        correct += pc.count_distinct(images.filter(hits)).as_py()
        several = several or len(images) > 0
    return labelled, correct, several


def merge_samples(root: Path, shards: int) -> Path:
    """Write ``samples.parquet``, one row per image, from the files of all shards; return its path.

    Parameters
    ----------
    shards
        Number of shards of the run.

    Raises
    ------
    ValueError
        If a file is missing or damaged, or if the two files of a shard list different images.
    """
    path = root / "samples.parquet"
    write_tables((_joined(root, shard) for shard in range(shards)), path)
    return path


def read_samples(root: Path) -> list[dict[str, Any]]:
    """Read the rows of ``samples.parquet``; they are in the order of the arrays' rows."""
    return list(each_sample(root, list(SAMPLE_COLUMNS)))


def each_sample(root: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield some columns of each row of ``samples.parquet``, of which few are in memory at once."""
    return rows_of(root / "samples.parquet", columns, _MERGED, _ADDED)


def sample_table(root: Path, columns: list[str]) -> pa.Table:
    """Read some columns of ``samples.parquet`` as one table."""
    return read_table(root / "samples.parquet", columns, _MERGED, _ADDED)


def each_sample_of_shards(root: Path, shards: int) -> Iterator[dict[str, Any]]:
    """Yield the rows that :func:`merge_samples` would write, without writing them."""
    for shard in range(shards):
        yield from read_samples_of_shard(root, shard)


def _part(root: Path, stage: str, shard: int) -> Path:
    return root / sample_part(stage, shard)


def with_added_columns(schema: pa.Schema) -> pa.Schema:
    """The columns of a ``samples.parquet`` of any version, and those that later versions added."""
    return pa.schema([*schema, *(_MERGED.field(name) for name in sorted(_ADDED.difference(schema.names)))])


def _write_part(root: Path, stage: str, shard: int, table: pa.Table) -> Path:
    path = _part(root, stage, shard)
    write_table(table, path)
    return path


def _read_part(root: Path, stage: str, shard: int, columns: list[str] | None = None) -> pa.Table:
    schema = _FROM_INPUTS if stage == "inputs" else _FROM_ACTIVATIONS
    return read_table(_part(root, stage, shard), columns, schema, _ADDED)


def _both(
    root: Path, shard: int, of_inputs: list[str] | None = None, of_activations: list[str] | None = None
) -> tuple[pa.Table, pa.Table]:
    """Read the two files of a shard, or some columns, which must list the same images in the same order."""
    table = _read_part(root, "inputs", shard, of_inputs)
    other = _read_part(root, "activations", shard, of_activations)
    if not table["sample_id"].equals(other["sample_id"]):
        raise ValueError(f"shard {shard} of {root}: the inputs and the activations are of different images")
    return table, other


def _joined(root: Path, shard: int) -> pa.Table:
    """Join the two files of a shard."""
    table, other = _both(root, shard)
    # An input that was read may still fail in the model, so the error of the later stage counts first.
    status = pc.if_else(pc.is_valid(other["error"]), "failed", table["status"])
    error = pc.coalesce(other["error"], table["error"])
    table, other = table.drop_columns(["label_name", "status", "error"]), other.drop_columns(["error"])
    for name, column in (("status", status), ("error", error)):
        table = table.append_column(_FROM_INPUTS.field(name), column)
    for name in other.column_names[1:]:
        table = table.append_column(name, other[name])
    return table.select(SAMPLE_COLUMNS)
