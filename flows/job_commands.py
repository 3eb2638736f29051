"""The commands that run jobs: ``floodlit run`` and ``floodlit train``."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.environment import keep_logs_off_the_terminal
from flows.terminal import FAILED, fail, listed, tell
from storage.credentials import without_credentials


def run(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="the job file; relative paths start at its folder")
    ],
    store: Annotated[
        str | None, typer.Option(help="folder or s3:// address of the results; replaces the job's store")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="run failed steps again; they are skipped without it")
    ] = False,
) -> None:
    """Run a job, or resume it: explain, score, store the results, log them to MLflow.

    The same job in the same store resumes where it stopped. A job with more explainers or metrics computes
    only these. Any other job in the same store is refused.
    """
    with _reporting():
        _run(job, store, retry_failed)


def findings(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="folder of a finished run, as `floodlit run` made it")
    ],
    explainer: Annotated[
        list[str] | None,
        typer.Option(
            "--explainer", help="explainer whose maps are read, by default the run's first; may be repeated"
        ),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(min=0, help="passes through the network per class, at most; by default 4,000"),
    ] = None,
) -> None:
    """Look for what is wrong with the model of a finished run: suspect, test by intervention, tell.

    What the maps suspect is taken out of the images of a class and put into those of other classes. A finding
    is what survives both tests. The results are tables, arrays, a section of the report, and lines here.
    """
    with _reporting():
        _findings(directory, explainer or [], passes)


def _findings(directory: Path, explainers: list[str], passes: int | None) -> None:
    """Run the job of a finished run again, with findings in addition, and print them."""
    from flows.findings import job_with_findings
    from flows.inspect_commands import refusals
    from flows.server import prefect_server
    from flows.terminal import tell_findings
    from storage.run import Run

    with refusals():
        job = job_with_findings(directory, explainers, passes)
    with prefect_server() as server:
        from flows.explain import explain  # takes seconds, in which the server starts

        _tell_places(job.store, server)
        explain(job)
    done = Run.open(job.store)
    tell_findings(done)
    listed(
        {"report": str(done.page), "all of it": f'{_command("floodlit")} query {done.root} "FROM findings"'}
    )


@contextmanager
def _reporting() -> Iterator[None]:
    """Keep logs and tracebacks in Prefect: the terminal shows progress, and an error as one line."""
    keep_logs_off_the_terminal()
    from flows.stopping import stopped_once

    with _one_line_failures(), stopped_once():
        yield


@contextmanager
def _one_line_failures() -> Iterator[None]:
    """End the command with one line and an exit code if a job fails for a known reason."""
    from prefect.exceptions import CancelledRun

    from storage.errors import FloodlitError
    from storage.places import is_away

    try:
        yield
    except FloodlitError as error:
        raise fail(str(error), error.exit_code) from error
    except CancelledRun as error:
        raise fail("cancelled; run the same job again to continue", FAILED) from error
    except KeyboardInterrupt as error:
        raise fail("stopped; run the same job again to continue", FAILED) from error
    except OSError as error:
        full = error.errno == errno.ENOSPC
        told = (
            f"the disk is full ({error}); free some space and run the same job again to continue"
            if full
            else str(error)
        )
        raise fail(told, FAILED) from error
    except Exception as error:
        if not is_away(error):  # an error of the program, whose traceback is of use
            raise
        raise fail(str(error), FAILED) from error


def _run(path: Path, store: str | None, retry_failed: bool) -> None:
    """Read the job, run it on a Prefect server and print its results."""
    from flows.job import Job
    from flows.job_file import read_job
    from flows.server import prefect_server

    job = read_job(path, Job, store)  # a file that is refused starts no server
    with prefect_server() as server:
        from flows.explain import explain  # takes seconds, in which the server starts

        _tell_places(job.store, server)
        explain(job, retry_failed)
    _results(job)


def _tell_places(store: Path, server: Callable[[], str]) -> None:
    """Print where the results go and where Prefect can be watched, once its server answers."""
    tell(f"store   {store}")
    tell(f"prefect {without_credentials(server().removesuffix('/api'))}")


def train(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="the job file; relative paths start at its folder")
    ],
    store: Annotated[
        str | None, typer.Option(help="folder of the checkpoints and the head; replaces the job's store")
    ] = None,
) -> None:
    """Train a P-TAME head for a classifier, or resume the training.

    The same job in the same store resumes from the last checkpoint. If the head is already in the store, the
    command only registers it.
    """
    with _reporting():
        _train(job, store)


def _train(path: Path, store: str | None) -> None:
    """Read the training's job, run it on a Prefect server and print where the head is."""
    from flows.job_file import read_job
    from flows.server import prefect_server
    from flows.train_job import TrainJob
    from storage.tracking import default_uri

    job = read_job(path, TrainJob, store)
    with prefect_server() as server:
        from flows.train import train_ptame

        _tell_places(job.store, server)
        made = train_ptame(job)
    uri = job.tracking or default_uri(job.store)
    listed(
        {
            "head": made["head"],
            "registered": made["registered"],
            "maps": f"{job.store}/maps.png",
            "use it": f'[[explainers]] name = "ptame", head = "{made["head"]}"',
            "MLflow": _mlflow(uri),
        }
    )


def _results(job: Any) -> None:
    """Print what a complete run has found, what is to be known of it, and last where its page is."""
    from flows.terminal import tell_results
    from storage.parquet import read_table
    from storage.places import is_there
    from storage.run import Run
    from storage.samples import each_sample
    from storage.tracking import default_uri
    from tasks.results.accuracy import read_accuracy
    from tasks.results.remarks import beside_float32, layer_of, notes_of

    done = Run.open(job.store)
    tell_results(done)
    accuracy = read_accuracy(done)
    if accuracy is not None:
        tell(accuracy.told())
    read = each_sample(done.root, ["uri", "status", "error"])
    damaged = [sample for sample in read if sample["status"] != "ok"]
    if damaged:
        first = f"{damaged[0]['uri']}: {damaged[0]['error']}"
        tell(f"{len(damaged)} of {done.rows} images failed, e.g. {first}")
        asked = "SELECT uri, error FROM samples WHERE status = 'failed'"
        tell(f'all of them: {_command("floodlit")} query {done.root} "{asked}"')
    for line in (*beside_float32(read_table(done.costs)), *notes_of(done, done.records())):
        tell(line)
    uri = job.tracking or default_uri(job.store)
    taken = done.manifest.weights
    lines = {"weights": _taken(taken)} if taken and any(taken.values()) else {}
    lines |= {"layer": layer_of(done)} if done.manifest.layer_choice else {}
    lines |= {"outputs": done.manifest.outputs} if done.manifest.outputs else {}
    lines |= {"dataset": done.manifest.dataset_read} if done.manifest.dataset_read else {}
    lines |= {
        "all numbers": f'{_command("floodlit")} query {done.root} "SELECT * FROM summary"',
        "Prefect": f"{_command('prefect')} server start, then http://127.0.0.1:4200",
        "MLflow": _mlflow(uri),
    }
    again = f"was not written; `{_command('floodlit')} report {done.root}` tries again and says why it fails"
    listed(lines | {"report": str(done.page) if is_there(done.page) else again})


def _taken(taken: dict[str, Any]) -> str:
    """Say which weights of a file were taken, and what was cast, as the manifest keeps it."""
    parts = [f"those at {taken['key']} in the file" if taken["key"] else "those of the whole file"]
    parts = [] if taken["key"] is None else parts
    if taken.get("in_order"):  # runs of earlier versions do not have it
        parts = ["those of the whole file, in its order, since its names are not the network's"]
    if taken["others"]:
        parts.append(f"{', '.join(name or 'the whole file' for name in taken['others'])} would fit as well")
    parts += [f"{count} tensors were cast from {kind}" for kind, count in taken["cast"].items()]
    return "; ".join(parts)


def _mlflow(uri: str) -> str:
    """Say how the pages of MLflow are opened."""
    from storage.tracking import page_of_all

    page = page_of_all(uri)
    if uri.startswith(("http:", "https:")):
        return without_credentials(f"{uri.rstrip('/')}/{page}")
    return f"{_command('mlflow')} ui --backend-store-uri {uri}, then http://127.0.0.1:5000/{page}"


def _command(name: str) -> str:
    """Return the name of a command, or its path if the environment is not on the search path."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))
