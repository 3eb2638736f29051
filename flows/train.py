"""The flow that trains P-TAME's head: a job in, one file out, resumed wherever it was stopped."""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import torch
from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from explainers.ptame import load_head, save_head
from flows.job import JobError
from flows.prepare import LIBRARIES, geometry_of
from flows.retries import not_retried
from flows.terminal import Progress
from flows.train_job import TrainJob
from flows.watch import Watch
from storage.datasets.opening import Dataset, open_dataset
from storage.lock import Lock, LostLockError, held
from storage.training import TrainingFolder
from tasks.training.data import Order, UnusableImagesError
from tasks.training.fitting import Event, Plan, StoppedError, TrainingError, crops_of, fit, networks
from tasks.training.optimisation import DivergedError, TrainingSettings
from tasks.training.processes import fit_in_processes

ARTIFACT_SECONDS = 2.0  # between updates of the progress artifact


@flow(name="train-ptame", flow_run_name="{job.name}")
def train_ptame(job: TrainJob) -> dict[str, Any]:
    """Train a P-TAME head, or what is left of the training; returns the head's file and registry address.

    A run that is cancelled or suspended in Prefect saves a checkpoint and ends; one that is paused waits.

    Raises
    ------
    flows.job.JobError
        If the job cannot run; nothing was started.
    storage.lock.LockedError
        If another job is at work in the store.
    storage.lock.LostLockError
        If another one took it over while this one gave no sign of life.
    tasks.training.fitting.TrainingError
        If it was stopped by a signal, a process died, or a file in the store is damaged; the line says what
        to do.
    tasks.training.data.UnusableImagesError
        If too many images cannot be used; the last checkpoint stays.
    storage.tracking.TrackingError
        If MLflow fails; run the same job again to continue.
    tasks.training.optimisation.DivergedError
        If the loss is no number; the last checkpoint stays.
    flows.watch.NotResumedError
        If it was paused for a limited time and not resumed.
    prefect.exceptions.CancelledRun
        If it was cancelled.
    """
    with (
        not_retried(JobError, StoppedError, DivergedError, UnusableImagesError, LostLockError),
        held(job.store, job.name) as lock,
        Watch() as watch,
    ):
        plan = prepare_training(job)
        while not plan.folder.head.exists():
            try:
                train_head(job, plan, watch, lock)
            except StoppedError:
                if not watch.told:
                    raise
                if (end := watch.settle()) is not None:
                    return end  # type: ignore[return-value]  # Prefect makes it the run's own
        return {"head": str(plan.folder.head), "registered": publish_head(job, plan)}


def prepare_training(job: TrainJob) -> Plan:
    """Check the job against the networks and the data, and create its folder or open it.

    Raises
    ------
    JobError
        In one line, with the key to change.
    """
    try:
        dataset = open_dataset(job.dataset)
        if dataset.modality != "image":
            raise ValueError(f"dataset.kind: P-TAME explains images, and these are {dataset.modality}s")
        geometry, size = geometry_of(job.model, dataset)
        order = _order(job, len(dataset.samples))
        steps = job.steps or max(2, round(job.epochs * order.steps_per_epoch))
        plan = Plan(
            folder=TrainingFolder(Path(), {}),
            model=job.model,
            auxiliary=job.auxiliary.model,
            taps=job.auxiliary.taps,
            dataset=job.dataset,
            geometry=geometry,
            input_size=size,
            order=order,
            settings=TrainingSettings(steps, job.loss.settings(), job.precision, job.seed),
            accumulate=job.accumulate,
            flip=job.flip,
            workers=job.watch.workers,
            numbers=job.watch.numbers,
            validation=job.watch.validation,
            checkpoint=60 * job.watch.checkpoint,
        )
        _check_images(plan, dataset)
        return _in_its_folder(job, plan, dataset.fingerprint)
    except ValueError as error:
        raise JobError(str(error)) from error


def _order(job: TrainJob, total: int) -> Order:
    """Which of so many images train in which step, and in how many processes; ValueError if there is none."""
    processes = job.processes or max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ValueError(f"processes: {processes} need a GPU each, and there are {there}; lower it")
    order = Order(total, min(job.held_out, total), job.batch, processes, job.seed)
    if not order.steps_per_epoch:
        raise ValueError(
            f"batch: {len(order.rows)} training images do not fill one step of {job.batch} images in "
            f"{processes} processes; lower batch or held_out"
        )
    return order


def _check_images(plan: Plan, dataset: Dataset) -> None:
    """Raise ValueError unless one image at least can be used of those that train, and of those held out."""
    crops = crops_of(plan)
    crops.dataset = dataset  # which may be long to open
    for epoch, rows in ((0, plan.order.rows), (-1, plan.order.held_out)):
        if rows:
            crops[epoch, rows[0]]


def _in_its_folder(job: TrainJob, plan: Plan, dataset_fingerprint: str) -> Plan:
    classifier, auxiliary = networks(plan, "cpu")
    with closing(classifier), closing(auxiliary):
        facts = {
            "processes": plan.order.processes,
            "model_fingerprint": classifier.fingerprint,
            "auxiliary_fingerprint": auxiliary.fingerprint,
            "dataset_fingerprint": dataset_fingerprint,
        }
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    folder = TrainingFolder.create_or_open(job.store, job.identity() | facts, versions)
    return Plan(**{**vars(plan), "folder": folder})


@task(name="train", task_run_name="train", cache_policy=NO_CACHE)
def train_head(job: TrainJob, plan: Plan, watch: Watch, lock: Lock) -> None:
    """Train to the end, telling MLflow, Prefect and the terminal about it."""
    logger = get_run_logger()
    log = _log(job, plan)
    artifact = create_progress_artifact(
        progress=0.0, key="floodlit-training", description=f"Steps of {plan.folder.root}"
    )
    assert isinstance(artifact, UUID)
    steps = plan.settings.steps
    told = time.monotonic()
    with Progress(steps, 0) as progress, _asked_to_stop(watch) as stopped, _ended(log):

        def emit(event: Event) -> None:
            nonlocal told
            lock.check()
            log.numbers(event.step, event.values)
            if event.picture:
                log.file(plan.folder.picture)
            progress.reach(event.step, _label(event))
            if event.problems:
                logger.warning(
                    "%s images cannot be used, others stand in: %s", len(event.problems), event.problems[0]
                )
            if time.monotonic() - told > ARTIFACT_SECONDS or event.step == steps:
                told = time.monotonic()
                update_progress_artifact(artifact, progress=progress.percent)
                logger.info("step %s of %s: %s", event.step, steps, _label(event))

        try:
            if plan.order.processes > 1:
                fit_in_processes(plan, emit, stopped)
            else:
                fit(plan, 0, emit, stopped)
        except DivergedError as error:
            kept = "the last checkpoint" if plan.folder.checkpoint.exists() else "no checkpoint yet"
            raise DivergedError(f"{error}; {plan.folder.root} has {kept}") from error


@contextmanager
def _ended(log: Any) -> Iterator[None]:
    """The MLflow run ends as what is done inside does."""
    from storage.tracking import TrackingError

    try:
        yield
    except BaseException as error:
        with suppress(TrackingError):  # what happened before is what is told
            log.end("KILLED" if isinstance(error, StoppedError) else "FAILED")
        raise
    log.end("FINISHED")


def _label(event: Event) -> str:
    shown = ("loss", "mask_area", "images_per_second", "images_replaced", "held_out_average_drop_15")
    told = [name for name in shown if name in event.values and (name != "images_replaced" or event.problems)]
    return ", ".join(f"{name} {event.values[name]:.3g}" for name in told)


def _log(job: TrainJob, plan: Plan) -> Any:
    from storage.tracking import TrainingLog, default_uri  # MLflow takes seconds to import

    flat: dict[str, Any] = {"steps": plan.settings.steps, "images": len(plan.order.rows), "seed": job.seed}
    for table in ("dataset", "model", "auxiliary", "loss"):
        given = getattr(job, table).model_dump(mode="json")
        flat |= {f"{table}.{key}": value for key, value in given.items() if value is not None}
    uri = job.tracking or default_uri(job.store)
    return TrainingLog(uri, job.store, job.name, plan.folder.hash, flat)


@task(name="register", task_run_name="register", cache_policy=NO_CACHE)
def publish_head(job: TrainJob, plan: Plan) -> str:
    """Make the head a version of a registered model; returns its address."""
    try:
        head, config, auxiliary = load_head(plan.folder.head)
    except ValueError as error:
        raise TrainingError(
            f"{plan.folder.head} is damaged; delete it and run the same job again, which writes it anew from "
            "the last checkpoint"
        ) from error
    log = _log(job, plan)
    tags = {
        "floodlit.classifier": config.classifier_fingerprint,
        "floodlit.classes": str(config.num_classes),
        "floodlit.input_size": "x".join(map(str, config.input_size)),
        "floodlit.training": plan.folder.hash,
    }
    # The registry keeps a copy elsewhere, which has to name files absolutely.
    absolute = config.auxiliary.relative_to(plan.folder.root)
    with TemporaryDirectory() as folder, closing(auxiliary), _ended(log):
        copy = Path(folder) / plan.folder.head.name
        save_head(copy, head, config.model_copy(update={"auxiliary": absolute}), auxiliary)
        address: str = log.register(job.register_as or job.name, copy, tags)
    return address


@contextmanager
def _asked_to_stop(watch: Watch) -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came, or Prefect says so; the training then saves a checkpoint and ends."""
    asked = threading.Event()

    def stopped() -> bool:
        return asked.is_set() or watch.stopping()

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals go to the main thread; a kill costs the steps since the last checkpoint
        return
    known = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
