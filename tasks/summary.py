"""After the last shard: summary, pictures, Prefect artifacts, MLflow."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.job import Job
from flows.terminal import standing
from storage.files import on_this_machine
from storage.run import Run
from storage.scores import merge_samples
from storage.tracking import ExplainerResult, default_uri, page_of, track, without_user
from tasks.pictures.contact_sheet import draw_contact_sheet
from tasks.pictures.curves import draw_curves
from tasks.pictures.drawing import small_copy
from tasks.results.costs import tell_costs
from tasks.results.summary import mean_curves, summarise

# A server sends artifacts whole, also to the page that lists them.
PICTURE_BYTES = 256 * 1024
TABLE_ROWS = 2000


@task(name="summary", task_run_name="summary", cache_policy=NO_CACHE)
def publish(job: Job) -> None:
    """Write samples.parquet, summary.parquet and the pictures; show them in Prefect and MLflow."""
    run = Run.open(job.store)
    merge_samples(run.root)
    summary, costs, curves = summarise(run), tell_costs(run), mean_curves(run)
    draw_contact_sheet(run)
    draw_curves(run, curves)
    names = ("contact_sheet.png", "curves.png")
    pictures = [path for name in names if (path := run.report / name).exists()]
    rows = summary.to_pylist()
    spent = {row.pop("explainer"): row for row in costs.to_pylist()}
    results = {
        name: ExplainerResult(
            parameters={"explainer": name, **run.explainers[name]["parameters"]},
            numbers=_numbers(row for row in rows if row["explainer"] == name)
            | {f"cost/{key}": value for key, value in spent[name].items() if value is not None},
            curves={metric: curve.tolist() for (e, metric), curve in curves.items() if e == name},
        )
        for name in run.explainers
    }
    uri = job.tracking or default_uri(job.store)
    with ExitStack() as copies:
        files = [copies.enter_context(on_this_machine(path)) for path in pictures]
        tracked = track(uri, job.store, job.name, run.hash, _parameters(run), results, files)
    _show(job, summary, costs, pictures)
    links = _links(run, uri, page_of(uri, tracked))
    create_markdown_artifact(links, key="floodlit-links", description=f"Where **{job.name}** is")


def _show(job: Job, summary: pa.Table, costs: pa.Table, pictures: Iterable[Path]) -> None:
    """Tables and pictures as artifacts of the flow run."""
    rows = [_readable(row) for row in summary.to_pylist()]
    cut = f"; the first {TABLE_ROWS} of {len(rows)} rows" if len(rows) > TABLE_ROWS else ""
    create_table_artifact(
        key="floodlit-scores",
        table=rows[:TABLE_ROWS],
        description=f"Scores of **{job.name}**, mean and 95 % bootstrap interval, in `{job.store}`{cut}",
    )
    create_table_artifact(
        key="floodlit-standing",
        # A hyphen alone is a list to Markdown, as which cells are read.
        table=[{k: "" if v == "-" else v for k, v in row.items()} for row in standing(summary, costs)],
        description=f"Ranks of **{job.name}** over the metrics that judge, the best first, and costs",
    )
    for path in pictures:
        name = path.stem.replace("_", " ")
        shown = b64encode(small_copy(path.read_bytes(), PICTURE_BYTES)).decode()
        create_markdown_artifact(
            f"![{name}](data:image/webp;base64,{shown})\n\nIn full: `{path}`",
            key=f"floodlit-{path.stem.replace('_', '-')}",
            description=f"The {name} of **{job.name}**",
        )


def _links(run: Run, uri: str, page: str) -> str:
    """Where everything is, in Markdown; artifacts are read by many, so without users and passwords."""
    shown = without_user(uri)
    if uri.startswith(("http:", "https:")):
        mlflow = f"[{run.job['name']}]({shown.rstrip('/')}/{page})"
    else:
        mlflow = f"`mlflow ui --backend-store-uri {shown}`, then [its page](http://127.0.0.1:5000/{page})"
    return "\n".join(
        [
            f"# {run.job['name']}",
            f"- MLflow: {mlflow}",
            f"- maps: `{run.root / 'saliency.zarr'}`",
            f"- scores: `{run.root / 'scores'}`, `{run.summary}`, `{run.comparisons}`, `{run.costs}`",
            f"- pictures: `{run.report}`",
            f'- query: `floodlit query {run.root} "SELECT * FROM summary"`',
        ]
    )


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A summary row for Prefect's table, which knows no NaN."""
    shown = [
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
    values = {key: row[key] for key in shown}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _numbers(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    return {
        f"{row['metric']}{suffix}": row[key]
        for row in rows
        for key, suffix in (("mean", ""), ("low", "/low"), ("high", "/high"))
        if not math.isnan(row[key])
    }


def _parameters(run: Run) -> dict[str, Any]:
    """The resolved job, flat, as MLflow shows parameters."""
    flat: dict[str, Any] = {}
    for key in ("name", "target", "seed"):
        flat[key] = run.job[key]
    for table in ("dataset", "model", "compute"):
        flat |= {f"{table}.{key}": value for key, value in run.job[table].items() if value is not None}
    return flat | {
        "images": run.rows,
        "model_fingerprint": run.model_fingerprint,
        "run_hash": run.hash,
    }
