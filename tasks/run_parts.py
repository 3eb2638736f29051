"""What a worker keeps warm between tasks, and what every task does around its work."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from explainers.models.black_box import BlackBox, Modality
from explainers.models.compute import Compute, tf32
from explainers.models.loading import ModelSpec, load
from storage.datasets.opening import Dataset, DatasetSpec, open_dataset
from storage.records import Step, read_record, write_record
from storage.run import Run

logger = logging.getLogger(__name__)

# A worker with several threads takes one step at a time: the network's hooks and modes and PyTorch's switches
# are the whole process's, and a step fills its cores or its GPU.
_ALONE = threading.Lock()


@dataclass
class Outcome:
    """What a step did: rows, how often each status came up, the files it wrote, and notes for the record."""

    rows: int
    statuses: Iterable[str]
    files: list[Path]
    notes: dict[str, Any] = field(default_factory=dict)


def perform(
    root: str,
    step: Step,
    work: Callable[[Run], Outcome],
    is_done: Callable[[dict[str, Any]], bool],
    halve: bool = False,
) -> dict[str, Any]:
    """Do ``work`` unless the done-record says it is done, then write the record, last.

    ``halve`` has it done in half batches.

    Dask runs a finished task again when the worker that held its result dies: the record is looked at
    first, so that nothing is done twice.
    """
    with _ALONE:
        return _perform(Run.open(root), step, work, is_done, halve)


def _perform(
    run: Run,
    step: Step,
    work: Callable[[Run], Outcome],
    is_done: Callable[[dict[str, Any]], bool],
    halve: bool,
) -> dict[str, Any]:
    record = read_record(run.root, step)
    if record is not None and is_done(record):
        logger.info("%s was done before", step.label(run.shards))
        return {"step": str(step.path), "rows": record["rows"], "seconds": 0.0}
    start = time.perf_counter()
    worker = f"{socket.gethostname()}:{os.getpid()}"
    logger.info("%s begins on worker %s%s", step.label(run.shards), worker, ", half batches" if halve else "")
    with tf32(False):  # of float32 nothing is left to PyTorch's defaults; forward passes ask for themselves
        outcome = work(run.with_half_batches() if halve else run)
    seconds = time.perf_counter() - start
    statuses = dict(Counter(outcome.statuses))
    write_record(
        run.root,
        step,
        rows=outcome.rows,
        statuses=statuses,
        files=outcome.files,
        seconds=seconds,
        worker=worker,
        **outcome.notes,
    )
    _tell(step.label(run.shards), outcome.rows, statuses, seconds)
    return {"step": str(step.path), "rows": outcome.rows, "seconds": round(seconds, 3)}


def _tell(label: str, rows: int, statuses: dict[str, int], seconds: float) -> None:
    """One line a step, a warning where rows failed: inputs that cannot be read, say."""
    level = logging.WARNING if statuses.get("failed") else logging.INFO
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    logger.log(level, "%s: %s rows (%s) in %.2f s", label, rows, counts, seconds)


def device() -> str:
    """Where this worker computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def classifier_of(run: Run) -> BlackBox:
    """The run's classifier, loaded once a worker process."""
    spec = ModelSpec.model_validate(run.job["model"])
    shape = run.geometry["shape"] if run.modality == "tensor" else run.input_size
    return _classifier(spec, tuple(shape), run.manifest.modality, device(), compute_of(run))


@lru_cache(maxsize=1)
def _classifier(
    spec: ModelSpec, input_size: tuple[int, ...], modality: Modality, where: str, compute: Compute
) -> BlackBox:
    with torch.inference_mode(False):  # or no explainer could ever take gradients through these weights
        classifier = load(spec, where, input_size, modality)
        classifier.use(compute)
        return classifier


def compute_of(run: Run) -> Compute:
    """How the run's forward passes are computed."""
    return Compute.model_validate(run.job.get("compute", {}))  # runs of older versions do not say


def dataset_of(run: Run) -> Dataset:
    """The run's dataset, opened once a worker process."""
    return _dataset(DatasetSpec.model_validate(run.job["dataset"]))


@lru_cache(maxsize=1)
def _dataset(spec: DatasetSpec) -> Dataset:
    return open_dataset(spec)


def chunks(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
