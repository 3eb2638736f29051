"""Hugging Face: Parquet files whose images and maps ``datasets.load_dataset`` gives as images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.run import Run
from tasks.export.columns import (
    PICTURE,
    fact_columns,
    facts_of,
    picture,
    score_columns,
    scores_of,
    table_of,
)
from tasks.export.reading import Part, each_part
from tasks.export.registry import EVERY, exports

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# {name}

Saliency maps of {rows:,} samples by {explainers}, made by Floodlit. One row per sample and explained class.

`map_<explainer>` {maps}.

`<explainer>/<metric>` is the map's score. A cell is empty where there is no map or no score.
"""
PICTURES = (
    "is an image on the explainer's own grid: 0 is no evidence, 255 the strongest of this map; evidence\n"
    "against the class is left out. Enlarge it bilinearly to lay it over `image`, which the network sees so"
)
NUMBERS = "is the raw map on the explainer's own grid: one number per token or position where it is as fine"


@exports.register
class HuggingFace:
    """A folder for ``datasets.load_dataset(FOLDER)``, or to be pushed to the Hub."""

    name: ClassVar[str] = "huggingface"
    title: ClassVar[str] = "Parquet files with images and maps as images, for datasets.load_dataset"
    modalities: ClassVar[frozenset[str]] = EVERY

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write ``data/train-*.parquet``, one file per shard of the run, and ``README.md``."""
        columns = _columns(run)
        schema = pa.schema(
            list(columns.items()), {"huggingface": json.dumps({"info": {"features": _features(columns)}})}
        )
        (folder / "data").mkdir()
        written, shard, writer = 0, -1, None
        try:
            for part in each_part(run, scored=True):
                if part.first // run.manifest.shard_rows != shard:
                    shard = part.first // run.manifest.shard_rows
                    if writer is not None:
                        writer.close()
                    name = f"train-{shard:05d}-of-{run.shards:05d}.parquet"
                    writer = pq.ParquetWriter(folder / "data" / name, schema, compression="zstd")
                rows = list(_rows(part))
                written += len(rows)
                assert writer is not None
                writer.write_table(table_of(rows, columns).replace_schema_metadata(schema.metadata))
        finally:
            if writer is not None:
                writer.close()
        told = PICTURES if run.modality == "image" else NUMBERS
        card = CARD.format(name=run.name, rows=run.rows, explainers=", ".join(run.explainers), maps=told)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return [
            f"{written:,} rows in {run.shards} Parquet files",
            "open it: datasets.load_dataset('FOLDER', split='train')",
        ]


def _columns(run: Run) -> dict[str, pa.DataType]:
    kind = PICTURE if run.modality == "image" else pa.list_(pa.float32())
    maps = {f"map_{name}": kind for name in run.explainers}
    return {**fact_columns(run), **maps, **score_columns(run)}


def _rows(part: Part) -> Iterator[dict[str, Any]]:
    """Yield a row per sample and explained class; a sample without a class has one row."""
    maps = {name: _cells(part, name) for name in part.run.explainers}
    for place, sample in enumerate(part.samples):
        for target in range(max(1, len(sample["targets"]))):
            row = facts_of(part, place, target) | scores_of(part, place, target)
            yield row | {f"map_{name}": cells[place][target] for name, cells in maps.items()}


def _cells(part: Part, explainer: str) -> list[list[Any]]:
    """An explainer's maps as cells, one list per sample; None where there is no map."""
    if part.run.modality != "image":
        return [
            [None if np.isnan(each).any() else each.ravel().tolist() for each in maps]
            for maps in part.maps(explainer)
        ]
    return [
        [picture(file, f"{part.first + place:06d}-{target}.png") for target, file in enumerate(files)]
        for place, files in enumerate(part.map_pictures(explainer))
    ]


def _features(columns: dict[str, pa.DataType]) -> dict[str, Any]:
    """The types of the columns in the words of the library ``datasets``."""
    return {name: _feature(kind) for name, kind in columns.items()}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == PICTURE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    words = {"double": "float64", "float": "float32"}
    return {"_type": "Value", "dtype": words.get(str(kind), str(kind))}
