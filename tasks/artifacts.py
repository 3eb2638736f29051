"""Prefect artifacts of a finished run: tables, pictures and links."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from storage.run import Run
from tasks.markdown import code, words
from tasks.pictures.drawing import small_copy
from tasks.results.accuracy import Accuracy
from tasks.results.ranking_table import ranking_table

# Limits on artifacts: a Prefect server sends them whole, even to the page that only lists them.
PICTURE_BYTES = 256 * 1024
TABLE_ROWS = 2000


def show_results(
    run: Run, summary: pa.Table, costs: pa.Table, pictures: Iterable[Path], accuracy: Accuracy | None
) -> None:
    """Create the artifacts with the results of a run: scores, ranking table and pictures.

    Parameters
    ----------
    summary, costs
        The tables ``summary.parquet`` and ``costs.parquet``.
    pictures
        PNG files; each is shown as a smaller copy of at most ``PICTURE_BYTES``.
    accuracy
        The model's accuracy on the labels, if there are any.
    """
    rows = [_readable(row) for row in summary.to_pylist()]
    cut = f"; the first {TABLE_ROWS} of {len(rows)} rows" if len(rows) > TABLE_ROWS else ""
    told = ""
    if accuracy is not None and accuracy.labelled:
        what = "top-1 accuracy" if accuracy.exclusive else "most probable class is a label:"
        told = f"; {what} {accuracy.correct} of {accuracy.labelled}"
    create_table_artifact(
        key="floodlit-scores",
        table=rows[:TABLE_ROWS],
        description=f"Scores of **{words(run.name)}**, mean and 95 % bootstrap interval, in {code(run.root)}"
        f"{cut}{told}",
    )
    create_table_artifact(
        key="floodlit-standing",
        # Prefect reads cells as Markdown, where a hyphen alone starts a list.
        table=[{k: "" if v == "-" else v for k, v in row.items()} for row in ranking_table(summary, costs)],
        description=f"Mean ranks of **{words(run.name)}** over the ranked metrics, best first, and costs",
    )
    for path in pictures:
        name = path.stem.replace("_", " ")
        encoded = b64encode(small_copy(path.read_bytes(), PICTURE_BYTES)).decode()
        create_markdown_artifact(
            f"![{name}](data:image/webp;base64,{encoded})\n\nIn full: {code(path)}",
            key=f"floodlit-{path.stem.replace('_', '-')}",
            description=f"The {name} of **{words(run.name)}**",
        )


def show_links(run: Run, uri: str, page: str) -> None:
    """Create the artifact that links to everything a run has written.

    Parameters
    ----------
    uri
        MLflow's address.
    page
        Path of the run's page below that address.
    """
    links = _links(run, uri, page)
    create_markdown_artifact(links, key="floodlit-links", description=f"Where **{words(run.name)}** is")


def _links(run: Run, uri: str, page: str) -> str:
    """Links to everything, in Markdown."""
    if uri.startswith(("http:", "https:")):
        mlflow = f"[{words(run.name)}]({quote(uri.rstrip('/'), safe=':/%[]')}/{page})"
    else:
        served = code(f"mlflow ui --backend-store-uri {uri}")
        mlflow = f"{served}, then [its page](http://127.0.0.1:5000/{page})"
    tables = (run.root / "scores", run.summary, run.comparisons, run.costs)
    query = f'floodlit query {run.root} "SELECT * FROM summary"'
    return "\n".join(
        [
            f"# {words(run.name)}",
            f"- MLflow: {mlflow}",
            f"- maps: {code(run.root / 'saliency.zarr')}",
            f"- scores: {', '.join(map(code, tables))}",
            f"- pictures: {code(run.report)}",
            f"- query: {code(query)}",
        ]
    )


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the summary for Prefect's table, with None for NaN, which the table does not accept."""
    columns = [
        "explainer",
        "metric",
        "better",
        "mean",
        "low",
        "high",
        "n",
        "excluded",
        "rank",
        "best",
        "difference",
        "p_holm",
    ]
    values = {key: row[key] for key in columns}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
