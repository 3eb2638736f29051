"""The command ``floodlit``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.terminal import console

DONE, FAILED, USAGE = 0, 1, 2

app = typer.Typer(
    help="Explain a vision model over a whole dataset.\n\n"
    "Exit codes: 0 done and sound; 1 incomplete, failed or damaged; 2 the request itself is wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
Store = Annotated[Path, typer.Argument(metavar="DIR", help="a run folder, as `floodlit run` made it")]


class Format(StrEnum):
    """How query results are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def fail(message: str, code: int) -> typer.Exit:
    """Print one clear line on standard error; raise what is returned."""
    print(f"floodlit: {message}", file=sys.stderr)  # noqa: T201
    return typer.Exit(code)


@app.command()
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
    from flows.server import ServerError, prefect_server

    try:
        with prefect_server() as address:
            yield address
    except ServerError as error:
        raise fail(str(error), FAILED) from error


def _run(path: Path, store: Path | None, retry_failed: bool, server: Callable[[], str]) -> None:
    from flows.cluster import ClusterError
    from flows.explain import IncompleteError, explain
    from flows.job import Job, JobError, read_job
    from storage.lock import LockedError, LostLockError

    try:
        job = read_job(path, Job, store)
        console.print(f"store   {job.store}\nprefect {server().removesuffix('/api')}")
        explain(job, retry_failed)
    except (JobError, ClusterError) as error:
        raise fail(str(error), USAGE) from error
    except (IncompleteError, LockedError, LostLockError, OSError) as error:
        raise fail(_advice(error), FAILED) from error
    except Exception as error:
        from storage.tracking import TrackingError  # MLflow takes seconds to import: not before it is used

        if isinstance(error, TrackingError):
            raise fail(str(error), FAILED) from error
        raise
    _results(job)


@app.command()
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
    from explainers.ptame_training import DivergedError
    from flows.job import JobError, read_job
    from flows.train import train_ptame
    from flows.train_job import TrainJob
    from storage.lock import LockedError
    from storage.tracking import TrackingError, default_uri
    from tasks.training import StoppedError, TrainingError
    from tasks.training_data import UnusableImagesError

    try:
        job = read_job(path, TrainJob, store)
        console.print(f"store   {job.store}\nprefect {server().removesuffix('/api')}")
        made = train_ptame(job)
    except JobError as error:
        raise fail(str(error), USAGE) from error
    except StoppedError as error:
        raise fail(f"{error}; run the same job again to continue", FAILED) from error
    except (LockedError, TrainingError, DivergedError, UnusableImagesError, TrackingError, OSError) as error:
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
        console.print(f"{len(damaged)} of {done.rows} images could not be read, e.g. {first}")
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


@contextmanager
def _refusals() -> Iterator[None]:
    """A ValueError is the user's to mend: one line, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise fail(str(error), USAGE) from error


@app.command()
def status(directory: Store) -> None:
    """Say what is done, failed and missing in a run folder (exit code 1 until everything is done)."""
    from collections import Counter

    from flows.resume import remaining, tolerated
    from storage.records import failures, finished, read_record
    from storage.run import Run

    with _refusals():
        opened = Run.open(directory)
        steps = finished(opened.root)
        missing = remaining(opened)
        failed = {step: told for step, told in failures(opened.root).items() if step in missing}
    table = Table(
        title=f"{opened.job['name']}: {opened.rows} images in {opened.shards} shards",
        title_justify="left",
    )
    for column in ("stage", "explainer", "done", "missing shards", "rows by status"):
        table.add_column(column)
    stages = [("inputs", ""), ("activations", "")]
    stages += [(stage, name) for name in opened.explainers for stage in ("saliency", "scores")]
    for stage, name in stages:
        lacking = [str(step.shard + 1) for step in missing if (step.stage, step.explainer) == (stage, name)]
        counts: Counter[str] = Counter()
        for step in steps:
            if (step.stage, step.explainer) == (stage, name):
                counts.update((read_record(opened.root, step) or {}).get("statuses", {}))
        told = ", ".join(f"{count} {key}" for key, count in sorted(counts.items()))
        table.add_row(
            stage, name, f"{opened.shards - len(lacking)}/{opened.shards}", ", ".join(lacking), told
        )
    console.print(table)
    for step, why in failed.items():
        where = f"after {why['attempts']} attempts, {why['time']}; {opened.root / step.failure_path}"
        console.print(
            f"failed: {step.label(opened.shards)}: {why['error']} ({where})", soft_wrap=True, markup=False
        )
    retry = "; `floodlit run --retry-failed` does the failed ones again" if failed else "; run the job again"
    if opened.summary.exists() and (not missing or tolerated(opened, missing)):
        console.print(f"complete, but for {len(missing)} steps{retry}" if missing else "complete")
        raise typer.Exit(DONE)
    console.print(f"incomplete: {len(missing)} steps and the summary to do{retry}")
    raise typer.Exit(FAILED)


@app.command()
def query(
    directory: Store,
    sql: Annotated[
        str,
        typer.Argument(
            metavar="SQL", help="one SELECT over the views samples, scores, summary, comparisons and costs"
        ),
    ],
    output: Annotated[Format, typer.Option("--format", help="how to print the rows")] = Format.TABLE,
) -> None:
    """Ask a run folder in SQL (DuckDB), read-only.

    For example: floodlit query runs/demo "SELECT explainer, mean FROM summary WHERE metric = 'insertion'"
    """
    from storage.query import query as ask

    with _refusals():
        rows = ask(directory, sql)
    if output is Format.JSON:
        print(json.dumps(rows.to_pylist(), default=str))  # noqa: T201
    elif output is Format.CSV:
        import pyarrow.csv

        pyarrow.csv.write_csv(rows, sys.stdout.buffer)
    else:
        table = Table(*rows.column_names)
        for row in rows.to_pylist():
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console.print(table)


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="complete run folders")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="write summary.parquet and comparisons.parquet there as well"),
    ] = None,
) -> None:
    """Compare the explainers of several runs, of other models say, on the images they have in common.

    Means with intervals, ranks, paired differences to the best one, share of images won, and Wilcoxon's test
    with Holm's correction for all comparisons of a metric.
    """
    from flows.terminal import comparison_tables
    from storage.run import Run
    from tasks.compare import compare as compared_runs

    with _refusals():
        found = compared_runs([Run.open(directory) for directory in directories])
        if output is not None:
            found.write(output)
    for table in comparison_tables(found.summary, found.comparisons):
        console.print(table)
    for metric, why in found.left_out.items():
        console.print(f"left out: {metric}, {why}", soft_wrap=True, markup=False)
    console.print(f"on the {found.images} images that all runs have")


@app.command()
def verify(directory: Store) -> None:
    """Check every done-record against the data it stands for (exit code 1 if anything is damaged)."""
    from storage.run import Run
    from storage.verify import verify as check

    with _refusals():
        problems = check(Run.open(directory).root)
    for problem in problems:
        console.print(str(problem), markup=False, soft_wrap=True)
    if problems:
        raise fail(f"{len(problems)} problems; run the job again to repair them", FAILED)
    console.print("every done-record agrees with its data")


@app.command()
def components(
    directory: Store,
    sample: Annotated[str, typer.Option(metavar="ID", help="a sample_id, as in the view samples")],
    explainer: Annotated[
        str | None, typer.Option(help="one that decomposes its maps; by default the only one of the run")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="instead of a file in DIR/report/components")
    ] = None,
) -> None:
    """Draw what a sample's map is the weighted sum of, e.g. DecomCAM's orthogonal sub-saliency maps.

    The image, the map, then every component by weight, each scaled to its own maximum; below it its weight,
    d (what revealing it adds to the score) and its share of the singular values.
    """
    from storage.run import Run
    from tasks.components_picture import draw_components

    with _refusals():
        picture = draw_components(Run.open(directory), sample, explainer, output)
    console.print(str(picture), soft_wrap=True, highlight=False, markup=False)


@app.command()
def doctor(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="a run folder, or where one is going to be")
    ] = None,
    tracking: Annotated[str | None, typer.Option(help="MLflow tracking URI, as in the job")] = None,
) -> None:
    """Check versions, GPU, Prefect, MLflow, disk and store (exit code 1 if one of them is bad)."""
    from flows.doctor import examine

    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    bad = 0
    for finding in examine(directory, tracking):
        bad += finding.state == "bad"
        advice = f"; {finding.advice}" if finding.advice else ""
        state = f"[{colours[finding.state]}]{finding.state:<4}[/]"
        console.print(f"{state} {finding.what:<13} ", end="")
        console.print(f"{finding.told}{advice}", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(FAILED if bad else DONE)


@app.command()
def explainers() -> None:
    """List the explainers with their parameters and defaults."""
    from explainers.registry import explainers as registry

    _list(registry)


@app.command()
def metrics() -> None:
    """List the metrics with their parameters and defaults."""
    from tasks.metrics.registry import metrics as registry

    _list(registry)


def _list(registry: Any) -> None:
    table = Table(registry.kind, "what it is", "parameters and defaults")
    for name in registry.names():
        cls = registry.get(name)
        told = [
            f"{key} = {json.dumps(field.default)}" + (f"  ({field.description})" if field.description else "")
            for key, field in cls.Parameters.model_fields.items()
            if key != "preset"
        ]
        fast = getattr(cls.Parameters, "FAST", {})
        if fast:
            told.append(f'preset = "fast"  ({", ".join(f"{key} {value}" for key, value in fast.items())})')
        table.add_row(name, cls.title, "\n".join(told))
    console.print(table)


if __name__ == "__main__":
    app()
