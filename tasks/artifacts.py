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
from tasks.results.leaderboard import Cell, Leaderboard, Row
from tasks.results.numbers import NONE, number

# Limits on artifacts: a Prefect server sends them whole, even to the page that only lists them.
PICTURE_BYTES = 256 * 1024
TABLE_ROWS = 2000


def show_results(
    run: Run,
    summary: pa.Table,
    board: Leaderboard,
    told: str,
    pictures: Iterable[Path],
    accuracy: Accuracy | None,
) -> None:
    """Create the artifacts with the results of a run: leaderboard, scores and pictures.

    Parameters
    ----------
    summary
        The table ``summary.parquet``.
    board, told
        The leaderboard in the headline columns, and the sentence that judges the run.
    pictures
        PNG files; each is shown as a smaller copy of at most ``PICTURE_BYTES``.
    accuracy
        The model's accuracy on the labels, if there are any.
    """
    rows = [_readable(row) for row in summary.to_pylist()]
    cut = f"; the first {TABLE_ROWS} of {len(rows)} rows" if len(rows) > TABLE_ROWS else ""
    right = ""
    if accuracy is not None and accuracy.labelled:
        what = "top-1 accuracy" if accuracy.exclusive else "most probable class is a label:"
        right = f"; {what} {accuracy.correct} of {accuracy.labelled}"
    create_table_artifact(
        key="floodlit-scores",
        table=rows[:TABLE_ROWS],
        description=f"Scores of **{words(run.name)}**, mean and 95 % bootstrap interval, in {code(run.root)}"
        f"{cut}{right}",
    )
    create_table_artifact(
        key="floodlit-leaderboard",
        table=[_standing(board, row) for row in (*board.explainers, *board.controls)],
        description=f"{words(told)} ✓: better than every control (Wilcoxon, Holm, p < 0.05)",
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


def _standing(board: Leaderboard, row: Row) -> dict[str, str]:
    """One row of the leaderboard for Prefect's table: means with their 95 % intervals."""
    told = {
        f"{name} ({column.better} is better)": _told(row.cells.get(name), board.decimals(name))
        for name, column in board.columns.items()
    }
    control = " (control)" if row in board.controls else ""
    return {"explainer": f"{row.name}{control}", **told, "ms per map": number(row.milliseconds)}


def _told(cell: Cell | None, decimals: int) -> str:
    """One number of the leaderboard; why there is none, if that is known."""
    if cell is None or not cell.n:
        return NONE if cell is None or cell.reason is None else f"{NONE} ({cell.reason})"
    low, high = (number(end, decimals) for end in (cell.low, cell.high))
    ends = "" if math.isnan(cell.low) else f" ({low} to {high})"
    return f"{number(cell.mean, decimals)}{ends}{' ✓' if cell.beats else ''}"


def _links(run: Run, uri: str, page: str) -> str:
    """Links to everything, in Markdown."""
    if uri.startswith(("http:", "https:")):
        served, address = "", quote(uri.rstrip("/"), safe=":/%[]")
    else:
        served, address = f"{code(f'mlflow ui --backend-store-uri {uri}')}, then ", "http://127.0.0.1:5000"
    path, _, query = page.partition("?")
    report = f"{address}/{path}/artifactPath/{run.page.name}?{query}"
    tables = (run.root / "scores", run.summary, run.comparisons, run.costs)
    query = f'floodlit query {run.root} "SELECT * FROM summary"'
    return "\n".join(
        [
            f"# {words(run.name)}",
            f"- report: {code(run.page)}, also [in MLflow]({report})",
            f"- MLflow: {served}[{words(run.name)}]({address}/{page})",
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
