"""Columns that the Parquet exports share: the facts of a sample, its image or text, and its scores."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from storage.run import Run
from tasks.export.reading import Part

PICTURE = pa.struct(
    [("bytes", pa.binary()), ("path", pa.string())]
)  # as `datasets` and Embedding Atlas read it
FACTS = {
    "sample_id": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "label": pa.int64(),
    "label_name": pa.string(),
    "labels": pa.list_(pa.int64()),
    "prediction": pa.int64(),
    "prediction_name": pa.string(),
    "confidence": pa.float64(),
}
OF_IMAGES = {"boxes": pa.list_(pa.list_(pa.float64())), "width": pa.int32(), "height": pa.int32()}
OF_TEXTS = {"text": pa.string(), "tokens": pa.list_(pa.string())}
OF_TARGETS = {"target": pa.int64(), "target_name": pa.string(), "probability": pa.float64()}


def fact_columns(run: Run) -> dict[str, pa.DataType]:
    """The columns of facts of a run, with their types; ``correct`` is null where there is no one label."""
    more = {"image": OF_IMAGES, "text": OF_TEXTS, "tensor": {"values": pa.list_(pa.list_(pa.float32()))}}
    image = {"image": PICTURE} if run.modality == "image" else {}
    return {**FACTS, "correct": pa.bool_(), **more[run.modality], **image, **OF_TARGETS}


def facts_of(part: Part, place: int, target: int) -> dict[str, Any]:
    """The facts of one sample, and of one of its targets as far as it has it."""
    sample = part.samples[place]
    told = {name: sample[name] for name in (*FACTS, *OF_IMAGES, *OF_TEXTS)}
    known = sample["label"] is not None and sample["prediction"] is not None
    told["correct"] = sample["label"] == sample["prediction"] if known else None
    if target < len(sample["targets"]):
        told["target"] = sample["targets"][target]
        told["target_name"] = sample["target_names"][target] if sample["target_names"] else None
        told["probability"] = sample["probabilities"][target] if sample["probabilities"] else None
    if part.run.modality == "image":
        told["image"] = picture(part.pictures[place], f"{part.first + place:06d}.png")
    elif part.run.modality == "tensor" and sample["status"] == "ok":
        told["values"] = part.inputs[place].tolist()
    return told


def picture(file: bytes | None, name: str) -> dict[str, Any] | None:
    """An image file as a cell."""
    return None if file is None else {"bytes": file, "path": name}


def score_columns(run: Run) -> dict[str, pa.DataType]:
    """A column per explainer and number that is one per map, such as ``gradcam/insertion``."""
    columns = [name for name, entry in run.columns.items() if entry.pooled is None]
    return {f"{explainer}/{name}": pa.float64() for explainer in run.explainers for name in columns}


def scores_of(part: Part, place: int, target: int) -> dict[str, float | None]:
    """The cells of :func:`score_columns`."""
    found = part.scores(place, target)
    return {f"{explainer}/{name}": value for (explainer, name), value in found.items()}


def table_of(rows: list[dict[str, Any]], columns: dict[str, pa.DataType]) -> pa.Table:
    """Some rows as a table; a cell that a row lacks is null."""
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()})
