"""The flow that trains a P-TAME head and resumes where it was stopped; its product is one file."""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
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

from explainers.models.probes_at_load import probe
from explainers.models.ptame_head import load_head, save_head
from flows.input_form import bands_of, geometry_of
from flows.job import JobError
from flows.parameter_logs import keep_values_out_of_logs
from flows.prepare import LIBRARIES
from flows.retries import not_retried
from flows.terminal import Progress
from flows.train_job import TrainJob
from flows.watch import Watch
from storage.characters import shown
from storage.datasets.dataset import Dataset
from storage.datasets.index import keep_index
from storage.datasets.opening import open_dataset
from storage.lock import Lock, LostLockError, held
from storage.training import TrainingFolder
from tasks.markdown import code
from tasks.training.data import Order, UnusableImagesError
from tasks.training.fitting import (
    StoppedError,
    TrainingError,
    TrainingEvent,
    TrainingSetup,
    crops_of,
    fit,
    networks,
)
from tasks.training.optimisation import DivergedError, TrainingSettings
from tasks.training.processes import fit_in_processes

ARTIFACT_SECONDS = 2.0  # between two updates of the progress artifact
keep_values_out_of_logs()


@flow(name="train-ptame", flow_run_name="{job.name}")
def train_ptame(job: TrainJob) -> dict[str, Any]:
    """Train a P-TAME head, or resume the training.

    A run that is cancelled or suspended in Prefect saves a checkpoint and ends. A run that is paused saves a
    checkpoint and waits.

    Returns
    -------
    dict
        ``head``, the path of the head's file, and ``registered``, its address in MLflow's registry.

    Raises
    ------
    flows.job.JobError
        If the job cannot run; nothing was started.
    storage.lock.LockedError
        If another job uses the store.
    storage.lock.LostLockError
        If another job took the store over because this job did not renew its lock in time.
    tasks.training.fitting.TrainingError
        If a signal stopped the training, a process died, or a file in the store is damaged. The message says
        what to do.
    tasks.training.data.UnusableImagesError
        If too many images cannot be used; the last checkpoint is kept.
    storage.tracking.TrackingError
        If MLflow fails; run the same job again to continue.
    tasks.training.optimisation.DivergedError
        If the loss is not finite; the last checkpoint is kept.
    flows.watch.NotResumedError
        If the run was paused for a limited time and not resumed.
    prefect.exceptions.CancelledRun
        If the run was cancelled.
    """
    with (
        not_retried(JobError, StoppedError, DivergedError, UnusableImagesError, LostLockError),
        held(job.store, job.name) as lock,
        Watch() as watch,
    ):
        setup = prepare_training(job)
        while not setup.folder.head.exists():
            try:
                train_head(job, setup, watch, lock)
            except StoppedError:
                if not watch.told:  # a signal stopped the training, not a request in Prefect
                    raise
                if (end := watch.settle()) is not None:
                    return end  # type: ignore[return-value]  # Prefect makes it the run's own
        return {"head": str(setup.folder.head), "registered": publish_head(job, setup)}


def prepare_training(job: TrainJob) -> TrainingSetup:
    """Check the job against the networks and the data, then create its folder or open it.

    Raises
    ------
    JobError
        If the job cannot run. The message is one line with the key to change.
    """
    try:
        bands = bands_of(job.dataset, job.model)
        dataset = open_dataset(job.dataset, bands, job.store)
        if dataset.modality != "image":
            raise ValueError(f"dataset.kind: P-TAME explains images, but these are {dataset.modality}s")
        geometry, size, stored = geometry_of(job.model, dataset, bands)
        order = _order(job, len(dataset.samples))
        steps = job.steps or max(2, round(job.epochs * order.steps_per_epoch))
        setup = TrainingSetup(
            folder=TrainingFolder(Path(), {}),  # replaced below, since it depends on the checked networks
            model=job.model,
            auxiliary=job.auxiliary.model.model_copy(
                update={} if bands.channels == 3 else {"channels": bands.channels}
            ),
            taps=job.auxiliary.taps,
            dataset=job.dataset,
            bands=replace(bands, stored=stored),
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
        _check_images(setup, dataset)
        setup = _in_its_folder(job, setup, dataset.fingerprint)
        keep_index(setup.folder.root, dataset)
        return setup
    except ValueError as error:
        raise JobError(str(error)) from error


def _order(job: TrainJob, total: int) -> Order:
    """Return which of ``total`` images each step draws, and in how many processes.

    Raises ValueError if there are too few GPUs for the processes, or too few images for one step.
    """
    processes = job.processes or max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ValueError(f"processes: {processes} need one GPU each, but there are {there}; lower it")
    order = Order(total, min(job.held_out, total), job.batch, processes, job.seed)
    if not order.steps_per_epoch:
        raise ValueError(
            f"batch: {len(order.rows)} training images do not fill one step of {job.batch} images in "
            f"{processes} processes; lower batch or held_out"
        )
    return order


def _check_images(setup: TrainingSetup, dataset: Dataset) -> None:
    """Raise ValueError if none of the training images, or none of the held-out images, can be used."""
    crops = crops_of(setup)
    crops.dataset = dataset  # opening it again may take long
    for epoch, rows in ((0, setup.order.rows), (-1, setup.order.held_out)):
        if rows:
            crops[epoch, rows[0]]


def _in_its_folder(job: TrainJob, setup: TrainingSetup, dataset_fingerprint: str) -> TrainingSetup:
    """Load the networks, create or open the training's folder, and return the setup with this folder."""
    classifier, auxiliary = networks(setup, "cpu")
    with closing(classifier), closing(auxiliary):
        probe(classifier, of_layers=False)  # a head reads no layer of the classifier
        facts = {
            # The images of each step depend on the number of processes.
            "processes": setup.order.processes,
            "model_fingerprint": classifier.fingerprint,
            "auxiliary_fingerprint": auxiliary.fingerprint,
            "dataset_fingerprint": dataset_fingerprint,
        }
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    folder = TrainingFolder.create_or_open(job.store, job.identity() | facts, versions)
    return TrainingSetup(**{**vars(setup), "folder": folder})


@task(name="train", task_run_name="train", cache_policy=NO_CACHE)
def train_head(job: TrainJob, setup: TrainingSetup, watch: Watch, lock: Lock) -> None:
    """Train to the end, and report to MLflow, Prefect and the terminal."""
    logger = get_run_logger()
    log = _log(job, setup)
    artifact = create_progress_artifact(
        progress=0.0, key="floodlit-training", description=f"Steps of {code(setup.folder.root)}"
    )
    assert isinstance(artifact, UUID)
    steps = setup.settings.steps
    told = time.monotonic()
    with Progress(steps, 0) as progress, _asked_to_stop(watch) as stopped, _ended(log):

        def emit(event: TrainingEvent) -> None:
            nonlocal told
            lock.check()
            log.numbers(event.step, event.values)
            if event.picture:
                log.file(setup.folder.picture)
            progress.reach(event.step, _label(event))
            if event.problems:
                logger.warning(
                    "%s images cannot be used and are replaced by others, first: %s",
                    len(event.problems),
                    shown(event.problems[0]),
                )
            if time.monotonic() - told > ARTIFACT_SECONDS or event.step == steps:
                told = time.monotonic()
                update_progress_artifact(artifact, progress=progress.percent)
                logger.info("step %s of %s: %s", event.step, steps, _label(event))

        try:
            if setup.order.processes > 1:
                fit_in_processes(setup, emit, stopped)
            else:
                fit(setup, 0, emit, stopped)
        except DivergedError as error:
            kept = "the last checkpoint" if setup.folder.checkpoint.exists() else "no checkpoint yet"
            raise DivergedError(f"{error}; {setup.folder.root} has {kept}") from error


@contextmanager
def _ended(log: Any) -> Iterator[None]:
    """End the MLflow run with the status of the block: FINISHED, FAILED, or KILLED if it was stopped."""
    from storage.tracking import TrackingError

    try:
        yield
    except BaseException as error:
        with suppress(TrackingError):  # the first error is the one to report
            log.end("KILLED" if isinstance(error, StoppedError) else "FAILED")
        raise
    log.end("FINISHED")


def _label(event: TrainingEvent) -> str:
    """Return the numbers of an event that the terminal and the log show."""
    shown = ("loss", "mask_area", "images_per_second", "images_replaced", "held_out_average_drop_15")
    told = [name for name in shown if name in event.values and (name != "images_replaced" or event.problems)]
    return ", ".join(f"{name} {event.values[name]:.3g}" for name in told)


def _log(job: TrainJob, setup: TrainingSetup) -> Any:
    """Open the training's MLflow run, with the job as its parameters."""
    from storage.tracking import TrainingLog, default_uri  # imported late: MLflow takes seconds to import

    flat: dict[str, Any] = {"steps": setup.settings.steps, "images": len(setup.order.rows), "seed": job.seed}
    for table in ("dataset", "model", "auxiliary", "loss"):
        given = getattr(job, table).model_dump(mode="json")
        flat |= {f"{table}.{key}": value for key, value in given.items() if value is not None}
    uri = job.tracking or default_uri(job.store)
    return TrainingLog(uri, job.store, job.name, setup.folder.hash, flat)


@task(name="register", task_run_name="register", cache_policy=NO_CACHE)
def publish_head(job: TrainJob, setup: TrainingSetup) -> str:
    """Register the head as a version of a model in MLflow; return the address of this version."""
    try:
        head, config, auxiliary = load_head(setup.folder.head)
    except ValueError as error:
        raise TrainingError(
            f"{setup.folder.head} is damaged; delete it and run the same job again, which writes it again "
            "from the last checkpoint"
        ) from error
    log = _log(job, setup)
    tags = {
        "floodlit.classifier": config.classifier_fingerprint,
        "floodlit.classes": str(config.num_classes),
        "floodlit.input_size": "x".join(map(str, config.input_size)),
        "floodlit.training": setup.folder.hash,
    }
    # The registry keeps its copy in another folder, so the copy has to name files by absolute paths.
    absolute = config.auxiliary.relative_to(setup.folder.root)
    with TemporaryDirectory() as folder, closing(auxiliary), _ended(log):
        copy = Path(folder) / setup.folder.head.name
        save_head(copy, head, config.model_copy(update={"auxiliary": absolute}), auxiliary)
        address: str = log.register(job.register_as or job.name, copy, tags)
    return address


@contextmanager
def _asked_to_stop(watch: Watch) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the training has to save a checkpoint and end.

    It has to if SIGINT or SIGTERM arrived, or if Prefect asks for it.
    """
    asked = threading.Event()

    def stopped() -> bool:
        return asked.is_set() or watch.stopping()

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread can handle signals; a kill loses the steps since the checkpoint
        return
    known = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
