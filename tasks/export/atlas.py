"""Embedding Atlas: one Parquet file with a row per sample, of which the tool computes an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage.run import Run
from tasks.export.columns import fact_columns, facts_of, score_columns, scores_of, table_of
from tasks.export.reading import each_part
from tasks.export.registry import EVERY, exports


@exports.register
class Atlas:
    """``samples.parquet`` with facts, scores, and the image or text of each sample."""

    name: ClassVar[str] = "atlas"
    title: ClassVar[str] = "one Parquet file with a row per sample, for Embedding Atlas, pandas or DuckDB"
    modalities: ClassVar[frozenset[str]] = EVERY

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write the file; scores are those of a sample's first explained class."""
        columns = {**fact_columns(run), **score_columns(run)}
        path = folder / "samples.parquet"
        with pq.ParquetWriter(path, pa.schema(list(columns.items())), compression="zstd") as writer:
            for part in each_part(run, scored=True):
                places = range(len(part.samples))
                rows = [facts_of(part, place, 0) | scores_of(part, place, 0) for place in places]
                writer.write_table(table_of(rows, columns))
        shown = {"image": " --image image", "text": " --text text", "tensor": ""}[run.modality]
        return [
            f"samples.parquet: {run.rows:,} rows, {len(columns)} columns",
            f"open it: embedding-atlas FOLDER/samples.parquet{shown}",
        ]
