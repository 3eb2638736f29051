"""The flow: a job in, a complete run folder out."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from distributed import Client
from prefect import Task, flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect_dask import DaskTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from explainers.base import Need
from explainers.registry import explainers
from flows.cluster import attach
from flows.drain import drain
from flows.job import Job
from flows.prepare import prepare
from flows.resume import remaining
from flows.terminal import Progress
from storage.records import Step
from storage.run import Run
from storage.verify import repair, verify
from tasks.activations import activations
from tasks.inputs import inputs
from tasks.saliency import saliency
from tasks.scores import scores

ARTIFACT_SECONDS = 2.0  # between updates of the progress artifact
NAMED = 5  # failed steps an error names before it counts the rest


class IncompleteError(RuntimeError):
    """Some steps could not be done; the message names them, and what is done stays done."""


@flow(name="explain", flow_run_name="{job.name}", task_runner=DaskTaskRunner())
def explain(job: Job) -> dict[str, Any]:
    """Explain and score a whole dataset, or what is left of it; returns the store and the counts.

    Stages: inputs -> activations -> saliency -> scores -> summary, one task run per shard and stage (and
    explainer). Success means that every done-record exists, whatever Prefect says of the task runs.

    Raises
    ------
    flows.job.JobError
        If the job cannot run; nothing was started.
    IncompleteError
        If steps failed; run the same job again to do what is missing.
    OSError
        If the disk is full; run the same job again after making space.
    """
    logger = get_run_logger()
    run = prepare(job)
    problems = verify(run.root)
    for problem in problems:
        logger.warning("repairing %s", problem)
    repair(run.root, problems)
    pending = remaining(run)
    total = len(run.explainers) * 2 * run.shards + 2 * run.shards
    logger.info("%s: %s of %s steps to do in %s", run.root, len(pending), total, f"{run.shards} shards")
    if pending:
        context = FlowRunContext.get()
        assert context is not None
        assert isinstance(context.task_runner, DaskTaskRunner)
        client, workers = attach(context.task_runner, job.cluster)
        failed = _drain(run, pending, client, workers, already=max(0, total - len(pending)))
        if failed:
            raise IncompleteError(_named(failed, run.shards))
    from flows.report import publish  # MLflow takes seconds to import, which nobody waits for at the start

    publish(job)
    if not job.keep_activations:
        run.drop_activations()
    return {"store": str(run.root), "images": run.rows, "steps_done": len(pending)}


def _drain(
    run: Run, pending: dict[Step, set[Step]], client: Client, workers: int, already: int
) -> dict[Step, str]:
    artifact = create_progress_artifact(
        progress=0.0, key="floodlit-progress", description=f"Steps of {run.root}"
    )
    assert isinstance(artifact, UUID)
    with Progress(len(pending), already) as progress:
        told = time.monotonic()

        def on_end(step: Step) -> None:
            nonlocal told
            progress.advance(step.label(run.shards))
            if time.monotonic() - told > ARTIFACT_SECONDS or progress.ended == progress.total:
                told = time.monotonic()
                update_progress_artifact(artifact, progress=progress.percent)

        return drain(pending, lambda step: _submit(run, step), client=client, workers=workers, on_end=on_end)


def _submit(run: Run, step: Step) -> PrefectDaskFuture[Any]:
    """Start the task run of a step; its arguments are a few strings and numbers."""
    arguments: dict[str, Any] = {"root": str(run.root), "shard": step.shard}
    task: Task[..., Any]
    match step.stage:
        case "inputs":
            task = inputs
        case "activations":
            task = activations
            arguments["keep"] = any(Need.ACTIVATIONS in explainers.get(name).needs for name in run.explainers)
        case "saliency":
            task, arguments["explainer"] = saliency, step.explainer
        case _:
            task, arguments["explainer"] = scores, step.explainer
    named = task.with_options(task_run_name=step.label(run.shards))
    future = named.submit(**arguments)
    assert isinstance(future, PrefectDaskFuture)
    return future


def _named(failed: dict[Step, str], shards: int) -> str:
    told = [f"{step.label(shards)}: {reason}" for step, reason in failed.items()]
    more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return f"{len(told)} steps failed; run the same job to try them again: {'; '.join(told[:NAMED])}{more}"
