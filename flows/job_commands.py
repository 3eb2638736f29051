"""The commands that run jobs: ``floodlit run`` and ``floodlit train``."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.terminal import FAILED, USAGE, console, fail


def run(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="the job; its relative paths start at its folder")
    ],
    store: Annotated[
        Path | None, typer.Option(help="folder of the results, instead of the job's own")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="do again what failed before, and is left alone otherwise")
    ] = False,
) -> None:
    """Run a job, or what is left of it: explain, score, store, track.

    The same job in the same store continues where it stopped; a job with more explainers or metrics
    computes only those; any other job in the same place is refused.
    """
    with _serving() as address:
        _run(job, store, retry_failed, address)


@contextmanager
def _serving() -> Iterator[Callable[[], str]]:
    """A Prefect server; yields a function that waits for its address."""
    # Logs and tracebacks are in Prefect; the terminal shows progress, and in one line what went wrong.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from prefect.exceptions import CancelledRun

    from flows.server import ServerError, prefect_server

    # Prefect, which hears SIGTERM while the flow runs, ends the flow and hands it on.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with prefect_server() as address:
            yield address
    except ServerError as error:
        raise fail(str(error), FAILED) from error
    except CancelledRun as error:
        raise fail("cancelled; run the same job again to continue", FAILED) from error
    except KeyboardInterrupt as error:
        raise fail("stopped; run the same job again to continue", FAILED) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(path: Path, store: Path | None, retry_failed: bool, server: Callable[[], str]) -> None:
    from flows.cluster import ClusterError
    from flows.explain import IncompleteError, explain
    from flows.job import Job, JobError, read_job
    from flows.watch import NotResumedError
    from storage.lock import LockedError, LostLockError
    from storage.places import is_away

    try:
        job = read_job(path, Job, store)
        console.print(f"store   {job.store}\nprefect {server().removesuffix('/api')}")
        explain(job, retry_failed)
    except (JobError, ClusterError) as error:
        raise fail(str(error), USAGE) from error
    except (IncompleteError, LockedError, LostLockError, NotResumedError, OSError) as error:
        raise fail(_advice(error), FAILED) from error
    except Exception as error:
        from storage.tracking import TrackingError  # MLflow takes seconds to import: not before it is used

        if isinstance(error, TrackingError) or is_away(error):
            raise fail(str(error), FAILED) from error
        raise
    _results(job)


def train(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="the training; its relative paths start at its folder")
    ],
    store: Annotated[
        Path | None, typer.Option(help="folder of the checkpoints and the head, instead of the job's own")
    ] = None,
) -> None:
    """Train a P-TAME head for a classifier, or what is left of the training.

    The same job in the same store continues from the last checkpoint; once the head is there, it is only
    registered.
    """
    with _serving() as address:
        _train(job, store, address)


def _train(path: Path, store: Path | None, server: Callable[[], str]) -> None:
    from flows.job import JobError, read_job
    from flows.train import train_ptame
    from flows.train_job import TrainJob
    from flows.watch import NotResumedError
    from storage.lock import LockedError, LostLockError
    from storage.tracking import TrackingError, default_uri
    from tasks.training.data import UnusableImagesError
    from tasks.training.fitting import StoppedError, TrainingError
    from tasks.training.optimisation import DivergedError

    try:
        job = read_job(path, TrainJob, store)
        console.print(f"store   {job.store}\nprefect {server().removesuffix('/api')}")
        made = train_ptame(job)
    except JobError as error:
        raise fail(str(error), USAGE) from error
    except StoppedError as error:
        raise fail(f"{error}; run the same job again to continue", FAILED) from error
    except (
        LockedError,
        LostLockError,
        NotResumedError,
        TrainingError,
        DivergedError,
        UnusableImagesError,
        TrackingError,
        OSError,
    ) as error:
        raise fail(_advice(error), FAILED) from error
    uri = job.tracking or default_uri(job.store)
    _listed(
        {
            "head": made["head"],
            "registered": made["registered"],
            "maps": f"{job.store}/maps.png",
            "use it": f'[[explainers]] name = "ptame", head = "{made["head"]}"',
            "MLflow": f"{_command('mlflow')} ui --backend-store-uri {uri}, then http://127.0.0.1:5000",
        }
    )


def _advice(error: Exception) -> str:
    import errno

    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error}); make space and run the same job again to continue"
    return str(error)


def _results(job: Any) -> None:
    from flows.terminal import score_tables, standing_table
    from storage.run import Run
    from storage.scores import read_samples, read_table
    from storage.tracking import default_uri

    done = Run.open(job.store)
    summary = read_table(done.summary)
    for table in (*score_tables(summary), standing_table(summary, read_table(done.costs))):
        console.print(table)
    damaged = [sample for sample in read_samples(done.root) if sample["status"] != "ok"]
    if damaged:
        first = f"{damaged[0]['uri']}: {damaged[0]['error']}"
        console.print(f"{len(damaged)} of {done.rows} images failed, e.g. {first}")
    uri = job.tracking or default_uri(job.store)
    lines = {
        "maps": f"{done.root}/saliency.zarr/<explainer>/maps",
        "scores": f"{done.root}/scores/ (Parquet), {done.summary}",
        "contact sheet": f"{done.report}/contact_sheet.png",
        "query": f'{_command("floodlit")} query {done.root} "SELECT * FROM summary"',
        "Prefect UI": f"{_command('prefect')} server start, then http://127.0.0.1:4200",
        "MLflow": f"{_command('mlflow')} ui --backend-store-uri {uri}, then http://127.0.0.1:5000",
    }
    _listed(lines)


def _listed(lines: dict[str, str]) -> None:
    """What is where, a line each."""
    width = max(map(len, lines))
    for key, value in lines.items():
        console.print(f"{key:<{width}}  {value}", soft_wrap=True, highlight=False, markup=False)


def _command(name: str) -> str:
    """How to call a command of this environment, which may not be on the path."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))
