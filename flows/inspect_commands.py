"""The commands that look at runs, and at what there is to run: none of them starts Prefect or Dask."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.terminal import DONE, FAILED, USAGE, console, fail

Store = Annotated[Path, typer.Argument(metavar="DIR", help="a run folder, as `floodlit run` made it")]


class Format(StrEnum):
    """How query results are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@contextmanager
def _refusals() -> Iterator[None]:
    """A ValueError is the user's to mend: one line, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise fail(str(error), USAGE) from error


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
    from tasks.results.comparisons import compare as compared_runs

    with _refusals():
        found = compared_runs([Run.open(directory) for directory in directories])
        if output is not None:
            found.write(output)
    for table in comparison_tables(found.summary, found.comparisons):
        console.print(table)
    for metric, why in found.left_out.items():
        console.print(f"left out: {metric}, {why}", soft_wrap=True, markup=False)
    console.print(f"on the {found.images} images that all runs have")


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
    from tasks.pictures.component_sheet import draw_components

    with _refusals():
        picture = draw_components(Run.open(directory), sample, explainer, output)
    console.print(str(picture), soft_wrap=True, highlight=False, markup=False)


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


def explainers() -> None:
    """List the explainers with their parameters and defaults."""
    from explainers.registry import explainers as registry

    _list(registry)


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
