"""After the last shard: summary, contact sheet, Prefect artifacts, MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.job import Job
from storage.files import on_this_machine
from storage.run import Run
from storage.scores import merge_samples
from storage.tracking import ExplainerResult, default_uri, track
from tasks.contact_sheet import draw_contact_sheet
from tasks.cost import tell_costs
from tasks.summary import mean_curves, summarise


@task(name="summary", task_run_name="summary", cache_policy=NO_CACHE)
def publish(job: Job) -> None:
    """Write samples.parquet, summary.parquet and the contact sheet; show them in Prefect and MLflow."""
    run = Run.open(job.store)
    merge_samples(run.root)
    summary = summarise(run)
    costs = {row.pop("explainer"): row for row in tell_costs(run).to_pylist()}
    draw_contact_sheet(run)
    rows = summary.to_pylist()
    create_table_artifact(
        key="floodlit-scores",
        table=[_readable(row) for row in rows],
        description=f"Scores of **{job.name}**, mean and 95 % bootstrap interval. Results: `{job.store}`",
    )
    curves = mean_curves(run)
    results = {
        name: ExplainerResult(
            parameters={"explainer": name, **run.explainers[name]["parameters"]},
            numbers=_numbers(row for row in rows if row["explainer"] == name)
            | {f"cost/{key}": value for key, value in costs[name].items() if value is not None},
            curves={metric: curve.tolist() for (e, metric), curve in curves.items() if e == name},
        )
        for name in run.explainers
    }
    uri = job.tracking or default_uri(job.store)
    with on_this_machine(run.report / "contact_sheet.png") as picture:
        pictures = [picture] if picture.exists() else []
        track(uri, job.store, job.name, run.hash, _parameters(run), results, pictures)


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
    for table in ("dataset", "model"):
        flat |= {f"{table}.{key}": value for key, value in run.job[table].items() if value is not None}
    return flat | {
        "images": run.rows,
        "model_fingerprint": run.model_fingerprint,
        "run_hash": run.hash,
    }
