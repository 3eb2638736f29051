"""What every task does around its work: read the done-record, work, write the record, log one line.

The records alone say what is done, so the tasks do not use Prefect's cache (``NO_CACHE``).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explainers.models.compute import tf32
from storage.records import DoneRecord, StageFacts, Step, read_record, write_record
from storage.run import Run

logger = logging.getLogger(__name__)

# A worker with several threads runs one step at a time. The hooks and modes of the network and the switches
# of PyTorch belong to the whole process, and one step uses all of its cores or its GPU anyway.
_ALONE = threading.Lock()


@dataclass
class Outcome:
    """What a step did.

    Attributes
    ----------
    rows
        Rows that were written.
    statuses
        One status per row.
    files
        The files that were written.
    facts
        Further facts for the done-record.
    """

    rows: int
    statuses: Iterable[str]
    files: list[Path]
    facts: StageFacts = field(default_factory=StageFacts)


def perform(
    root: str,
    step: Step,
    work: Callable[[Run], Outcome],
    is_done: Callable[[DoneRecord], bool],
    halve: bool = False,
) -> dict[str, Any]:
    """Do the work of one step, unless it is done, and write its done-record last.

    Dask runs a finished task again if the worker that held its result dies. The record is therefore read
    first, so that no step is done twice.

    Parameters
    ----------
    root
        The run folder.
    step
        The stage, the shard and the explainer.
    work
        Does the step in the run that it is given.
    is_done
        Whether an existing record covers all that is wanted now; if not, the step is done again.
    halve
        Whether to halve the batch sizes.

    Returns
    -------
    dict
        ``step``, the path of the record; ``rows``; ``seconds``, 0 if the step was done before.
    """
    with _ALONE:
        return _perform(Run.open(root), step, work, is_done, halve)


def _perform(
    run: Run,
    step: Step,
    work: Callable[[Run], Outcome],
    is_done: Callable[[DoneRecord], bool],
    halve: bool,
) -> dict[str, Any]:
    record = read_record(run.root, step)
    if record is not None and is_done(record):
        logger.info("%s was done before", step.label(run.shards))
        return {"step": str(step.path), "rows": record.rows, "seconds": 0.0}
    start = time.perf_counter()
    worker = f"{socket.gethostname()}:{os.getpid()}"
    logger.info("%s begins on worker %s%s", step.label(run.shards), worker, ", half batches" if halve else "")
    # PyTorch's defaults may allow TF32. It is off here; passes of a job with tf32 = true switch it on.
    with tf32(False):
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
        facts=outcome.facts,
    )
    _log_step(step.label(run.shards), outcome.rows, statuses, seconds)
    return {"step": str(step.path), "rows": outcome.rows, "seconds": round(seconds, 3)}


def _log_step(label: str, rows: int, statuses: dict[str, int], seconds: float) -> None:
    """Log one line per step; it is a warning if rows failed, for example unreadable inputs."""
    level = logging.WARNING if statuses.get("failed") else logging.INFO
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    logger.log(level, "%s: %s rows (%s) in %.2f s", label, rows, counts, seconds)
