"""The flow that runs a job and leaves a complete run folder."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import dask
from distributed import Client
from prefect import Task, flow
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import State
from prefect_dask import DaskTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from explainers.base import Need
from flows.cluster import attach, check, resources_of, worker_variables
from flows.drain import drain
from flows.environment import restored
from flows.findings import forget_outdated, pending_findings
from flows.job import Job, JobError
from flows.parameter_logs import keep_values_out_of_logs
from flows.prepare import prepare
from flows.progress import StageProgress
from flows.resume import remaining, tolerated, without
from flows.retries import not_retried
from flows.stopping import one_sigterm
from flows.terminal import Progress, tell
from flows.watch import Watch
from flows.worker_logs import send_logs
from flows.written_settings import settings_written_once
from storage.characters import shown
from storage.datasets.opening import ChangedDatasetError
from storage.errors import FloodlitError
from storage.lock import Lock, LostLockError, held
from storage.records import Step, drop_failure, failures, write_failure
from storage.run import Run
from storage.verify import repair, verify
from tasks.activations import activations
from tasks.inputs import inputs
from tasks.results.accuracy import write_accuracy
from tasks.run_parts import explainer_class
from tasks.saliency import saliency
from tasks.scores import scores
from tasks.suspicions import suspicions

NAMED = 5  # failed steps that an error names; the others are counted

keep_values_out_of_logs()


class IncompleteError(FloodlitError):
    """Some steps failed; the message names them, and the results of all other steps are kept."""


@flow(name="explain", flow_run_name="{job.name}", task_runner=DaskTaskRunner())
def explain(job: Job, retry_failed: bool = False) -> dict[str, Any]:
    """Explain and score a whole dataset, or resume an interrupted run.

    The stages are inputs -> activations -> saliency -> scores -> summary, and suspicions before the summary
    if the job looks for findings. There is one task run per shard and
    stage, and per explainer in the stages saliency and scores. The flow succeeds if every done-record exists,
    whatever Prefect says about the task runs. A step that fails is tried once more in half batches. If it
    fails again, this run and later runs skip it, unless ``retry_failed`` is set.

    A run that is cancelled or suspended in Prefect ends when its running steps have ended, or after a minute.
    A run that is paused waits after its running steps. Ctrl-C and SIGTERM drop the running steps. In every
    case the same job resumes from its store.

    Parameters
    ----------
    job
        The job.
    retry_failed
        Whether to run steps again that failed in an earlier run.

    Returns
    -------
    dict
        ``store`` (text) and the numbers ``images``, ``steps_done`` and ``failed``.

    Raises
    ------
    flows.job.JobError
        If the job cannot run; nothing was started.
    storage.lock.LockedError
        If another job uses the store.
    IncompleteError
        If more steps failed than the job tolerates.
    storage.tracking.TrackingError
        If MLflow fails. The results are in the store; running the same job again only logs them to MLflow.
    storage.datasets.opening.ChangedDatasetError
        If the dataset changed while the job ran. No step is marked as failed.
    OSError
        If the disk is full. Free some space and run the same job again.
    flows.drain.LostClusterError
        If the scheduler or all of its workers are gone.
    flows.watch.NotResumedError
        If the run was paused for a limited time and not resumed.
    prefect.exceptions.CancelledRun
        If the run was cancelled.
    """
    # These errors would occur again at once, so the deployment's retries are not used for them.
    final = not_retried(JobError, IncompleteError, LostLockError, ChangedDatasetError)
    with (
        final,
        held(job.store, job.name) as lock,
        Watch() as watch,
        restored(worker_variables()),
        one_sigterm(),
    ):
        return _explain(job, retry_failed, lock, watch)  # type: ignore[return-value]  # a state is Prefect's


def _explain(job: Job, retry_failed: bool, lock: Lock, watch: Watch) -> dict[str, Any] | State:
    """Run the flow's stages in a store that is locked; return the result or the state to end in."""
    logger = get_run_logger()
    check(job.cluster)
    run = prepare(job)
    problems = verify(run.root)
    for problem in problems:
        # What no step writes, such as a foreign file, is named and left as it is.
        logger.warning("%s%s", "repairing " if problem.step else "", shown(problem))
    repair(run.root, problems)
    if retry_failed:
        for step in failures(run.root):
            drop_failure(run.root, step)
    pending = remaining(run)
    todo = without(pending, failures(run.root).keys())
    logger.info("%s: %s steps to do, in %s shards", shown(run.root), len(todo), run.shards)
    forget_outdated(run, todo)
    if (end := _done(run, remaining, job, lock, watch)) is not None:
        return end
    lost = remaining(run)
    if lost and not tolerated(run, lost):
        raise IncompleteError(_named(run, lost))
    # They need the maps of all shards, so they start when the last one is there.
    if (end := _done(run, pending_findings, job, lock, watch)) is not None:
        return end
    from storage.tracking import default_uri  # imported late, because MLflow takes seconds to import
    from tasks.summary import summary

    lock.check()  # the summary replaces files of the whole run, so the store must still be ours
    summary(str(run.root), job.tracking or default_uri(run.root))
    lock.check()
    if not job.keep_activations and not lost:
        run.drop_activations()
    if not_found := pending_findings(run):
        raise IncompleteError(_named(run, not_found))
    return {
        "store": str(run.root),
        "images": run.rows,
        "steps_done": len(pending) - len(lost),
        "failed": len(lost),
    }


def _done(
    run: Run, steps_of: Callable[[Run], dict[Step, set[Step]]], job: Job, lock: Lock, watch: Watch
) -> State | None:
    """Run the pending steps that ``steps_of`` gives until each is done or given up.

    Returns the state in which the flow has to end before that, if a person stops it.
    """
    while todo := without(steps_of(run), failures(run.root).keys()):
        if _drain(run, todo, *_cluster(job), lock, watch):
            break
        if (end := watch.settle()) is not None:
            return end
    return None


def _cluster(job: Job) -> tuple[Client, int]:
    """Start the workers of this flow run; return the Dask client and the number of workers."""
    context = FlowRunContext.get()
    assert context is not None
    assert isinstance(context.task_runner, DaskTaskRunner)
    client, workers = attach(context.task_runner, job.cluster)
    send_logs(client)
    return client, workers


def _drain(
    run: Run, todo: dict[Step, set[Step]], client: Client, workers: int, lock: Lock, watch: Watch
) -> bool:
    """Run these steps; return whether each of them is done or given up."""
    later = [step for step in pending_findings(run) if step not in todo]
    stages = StageProgress(run, [*todo, *later])
    resources = resources_of(client)
    undone = len(todo) + len(later)
    with Progress(undone, stages.total - undone) as progress, settings_written_once():

        def on_end(step: Step) -> None:
            lock.check()  # a job that has lost its store must not write into it any more
            progress.advance(step.label(run.shards))
            stages.advance(step)
            if step.stage == "activations" and not stages.left("activations"):
                _tell_accuracy(run)  # now, because the rest may take hours

        complete = drain(
            todo,
            lambda step, halve: _submit(run, step, halve, resources),
            client=client,
            workers=workers,
            on_end=on_end,
            on_failure=lambda step, error, attempts: _mark_failed(run, step, error, attempts),
            stopping=watch.stopping,
            hurrying=watch.hurrying,
        )
    stages.tell()
    return complete


def _tell_accuracy(run: Run) -> None:
    """Report the model's accuracy on the labels in Prefect's log, and in the terminal if it is bad news.

    The terminal shows it again with the results.
    """
    found = write_accuracy(run)
    if found is not None:
        line = found.told()
        if found.is_chance:
            tell(line)
        get_run_logger().log(logging.WARNING if found.is_chance else logging.INFO, "%s", line)


def _mark_failed(run: Run, step: Step, error: Exception, attempts: int) -> None:
    """Write the failure of a step into the store, so that later runs skip the step."""
    told = f"{type(error).__name__}: {error}"
    write_failure(run.root, step, told, "".join(traceback.format_exception(error)), attempts)


def _submit(run: Run, step: Step, halve: bool, resources: dict[str, int]) -> PrefectDaskFuture[Any]:
    """Start the task run of a step, with half batches if ``halve``.

    The arguments are a few strings and numbers, because Prefect and Dask send and keep them.
    """
    arguments: dict[str, Any] = {"root": str(run.root), "shard": step.shard}
    task: Task[..., Any]
    match step.stage:
        case "inputs":
            task = inputs
        case "activations":
            task = activations
            # If no explainer reads the activations, the task predicts and does not store them.
            arguments["keep"] = any(
                Need.ACTIVATIONS in explainer_class(run, name).needs for name in run.explainers
            )
        case "saliency":
            task, arguments["explainer"] = saliency, step.explainer
        case "suspicions":
            arguments = {"root": str(run.root), "part": step.shard, "explainer": step.explainer}
            task = suspicions
        case _:
            task, arguments["explainer"] = scores, step.explainer
    if step.stage != "inputs":
        arguments["halve"] = halve
    again = ", half batches" if halve else ""
    named = task.with_options(task_run_name=f"{step.label(run.shards)}{again}")
    # Reading the inputs needs no GPU, so it must not wait for one.
    with dask.annotate(resources=resources if step.stage != "inputs" else {}):
        future = named.submit(**arguments)
    assert isinstance(future, PrefectDaskFuture)
    return future


def _named(run: Run, lost: Iterable[Step]) -> str:
    """Return the message about failed steps: their reasons, and how many steps wait for them."""
    lost, why = list(lost), failures(run.root)
    told = [f"{step.label(run.shards)}: {why[step].error}" for step in lost if step in why]
    waiting = len(lost) - len(told)
    more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
    behind = f"; {waiting} steps wait for them" if waiting else ""
    return (
        f"{len(told)} steps failed: {'; '.join(told[:NAMED])}{more}{behind}. `floodlit status` lists them, "
        "`floodlit run --retry-failed` runs them again"
    )
