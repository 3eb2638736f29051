"""The commands that inspect runs, jobs and the machine; none starts Prefect or Dask."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.terminal import DONE, FAILED, USAGE, console, fail, listed, tell, text
from storage.credentials import without_credentials

if TYPE_CHECKING:
    from storage.records import DoneRecord, Step
    from storage.run import Run

Store = Annotated[Path, typer.Argument(metavar="DIR", help="run folder, as `floodlit run` made it")]


class Format(StrEnum):
    """Output format of query results."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@contextmanager
def refusals() -> Iterator[None]:
    """End the command with one line and an exit code if the block raises an error that the user can solve.

    The exit code is that of a FloodlitError, 2 for any other ValueError, and 1 for a file or server that
    cannot be read.
    """
    from storage.errors import FloodlitError, one_line

    try:
        yield
    except OSError as error:
        raise fail(one_line(error), FAILED) from error
    except FloodlitError as error:
        raise fail(str(error), error.exit_code) from error
    except ValueError as error:
        raise fail(str(error), USAGE) from error


def status(directory: Store) -> None:
    """Show what is done, failed and missing in a run folder (exit code 1 until everything is done)."""
    from explainers.models.modality import MODALITIES
    from flows.findings import missing_findings
    from flows.resume import remaining, tolerated
    from flows.terminal import tell_results
    from storage.places import is_there
    from storage.records import failures
    from storage.run import Run
    from storage.verify import check_results
    from tasks.results.accuracy import read_accuracy
    from tasks.results.remarks import layer_of, notes_of

    with refusals():
        opened = Run.open(directory)
        records = opened.records()  # read once, since there may be many thousands
        noted = notes_of(opened, records)
        missing = remaining(opened, records)
        accuracy = read_accuracy(opened)
        failed = {step: told for step, told in failures(opened.root).items() if step in missing}
        complete = not missing or tolerated(opened, missing)
        check_results(opened.root)
        finished = complete and opened.summary.exists()
        tell(f"{opened.name}: {opened.rows:,} {MODALITIES[opened.modality].plural} in {opened.shards} shards")
        if missing or not finished:
            console.print(_stages(opened, records, missing))
        if finished:
            tell_results(opened)
    if opened.layer is not None:
        tell(f"layer {layer_of(opened)}")
    if accuracy is not None:
        tell(accuracy.told())
    if opened.manifest.dataset_read:
        tell(f"dataset: {opened.manifest.dataset_read}")
    for line in (*noted, *missing_findings(opened)):
        tell(line)
    for step, why in failed.items():
        where = f"after {why.attempts} attempts, {why.time}; {opened.root / step.failure_path}"
        tell(f"failed: {step.label(opened.shards)}: {why.error} ({where})")
    retry = "; `floodlit run --retry-failed` runs failed steps again" if failed else "; run the job again"
    if finished:
        tell(f"complete, except for {len(missing)} steps{retry}" if missing else "complete")
        if is_there(opened.page):
            tell(f"report: {opened.page}")
        raise typer.Exit(DONE)
    tell(f"incomplete: {len(missing)} steps and the summary are missing{retry}")
    raise typer.Exit(FAILED)


def _stages(run: Run, records: Sequence[DoneRecord], missing: Collection[Step]) -> Table:
    """Draw what is done and what is missing, by stage and explainer."""
    table = Table("stage", "explainer", "done", "missing shards", "rows by status")
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.step.stage, record.step.explainer].update(record.statuses)
    stages = [("inputs", ""), ("activations", "")]
    stages += [(stage, name) for name in run.explainers for stage in ("saliency", "scores")]
    for stage, name in stages:
        lacking = [step.shard + 1 for step in missing if (step.stage, step.explainer) == (stage, name)]
        told = ", ".join(f"{count} {key}" for key, count in sorted(counts[stage, name].items()))
        done = f"{run.shards - len(lacking)}/{run.shards}"
        table.add_row(*map(text, (stage, name, done, _ranges(lacking), told)))
    return table


def _ranges(numbers: list[int]) -> str:
    """Return ascending numbers as text, such as ``1-4, 7``; consecutive numbers are joined."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def query(
    directory: Store,
    sql: Annotated[
        str,
        typer.Argument(
            metavar="SQL",
            help="one SELECT over the views samples, scores, summary, comparisons, costs, findings and "
            "clusters",
        ),
    ],
    output: Annotated[Format, typer.Option("--format", help="format of the rows")] = Format.TABLE,
) -> None:
    """Query a run folder in SQL (DuckDB), read-only. In CSV, lists and structs are JSON text.

    For example: floodlit query runs/demo "SELECT explainer, mean FROM summary WHERE metric = 'insertion'"
    """
    from storage.query import query as ask

    with refusals():
        rows = ask(directory, sql)
    if output is Format.JSON:
        print(json.dumps(rows.to_pylist(), default=str))  # noqa: T201
    elif output is Format.CSV:
        import pyarrow.csv

        pyarrow.csv.write_csv(_flat(rows), sys.stdout.buffer)
    else:
        table = Table()
        for name in rows.column_names:
            table.add_column(text(name), overflow="fold")
        # By column, because two columns may have the same name.
        for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            table.add_row(*(text("" if value is None else value) for value in row))
        console.print(table)


def _flat(rows: Any) -> Any:
    """Return an Arrow table with its lists, structs and maps as JSON text, since CSV has no nested cells."""
    import pyarrow as pa

    for index, field in enumerate(rows.schema):
        if pa.types.is_nested(field.type):
            cells = rows.column(index).to_pylist()
            texts = [None if cell is None else json.dumps(cell, default=str) for cell in cells]
            rows = rows.set_column(index, field.name, pa.array(texts, pa.string()))
    return rows


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="complete run folders")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="folder into which to write summary.parquet and comparisons.parquet"
        ),
    ] = None,
) -> None:
    """Compare the explainers of several runs, e.g. of different models, on the images they have in common.

    The tables show means with intervals, ranks, paired differences to the best explainer, the share of images
    won, and Wilcoxon's test with Holm's correction for all comparisons of a metric.
    """
    from flows.terminal import comparison_tables
    from storage.run import Run
    from tasks.results.comparisons import compare as compared_runs

    with refusals():
        found = compared_runs([Run.open(directory) for directory in directories])
        if output is not None:
            found.write(output)
    for table in comparison_tables(found.summary, found.comparisons, found.images):
        console.print(table)
    for metric, why in found.left_out.items():
        tell(f"left out: {metric}, {why}")
    if found.images == 1:
        tell("on the one image that all runs have, so there are no intervals and no tests")
    else:
        tell(f"on the {found.images:,} images that all runs have")


def verify(directory: Store) -> None:
    """Check every file of a run: damaged, missing, foreign or unsigned (exit code 1 if there is any)."""
    from storage.run import Run
    from storage.verify import verify as check

    with refusals():
        problems = check(Run.open(directory).root)
    for problem in problems:
        tell(problem)
    if problems:
        raise fail(
            f"{len(problems)} problems; run the job again to repair them, and move foreign files away", FAILED
        )
    tell("every file of the run is as it was written, and there is no other")


def components(
    directory: Store,
    sample: Annotated[
        str, typer.Option(metavar="ID", help="sample_id of the sample, as in the view samples")
    ],
    explainer: Annotated[
        str | None,
        typer.Option(help="an explainer that decomposes its maps; not needed if the run has only one"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="file of the picture; by default in DIR/report/components"),
    ] = None,
) -> None:
    """Draw the components whose weighted sum is a sample's map, e.g. DecomCAM's orthogonal sub-saliency maps.

    The picture shows the image, the map and every component in the order of the weights, each scaled to its
    own maximum. Below a component stand its weight, d (what revealing it adds to the score) and its share of
    the singular values.
    """
    from storage.run import Run
    from tasks.pictures.component_sheet import draw_components

    with refusals():
        picture = draw_components(Run.open(directory), sample, explainer, output)
    tell(picture)


def doctor(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="run folder, or the place of a future one")
    ] = None,
    tracking: Annotated[str | None, typer.Option(help="MLflow tracking URI of the job")] = None,
) -> None:
    """Check versions, GPU, Prefect, MLflow, disk and store (exit code 1 if one of them is bad).

    Without DIR, the working directory is checked as the place of a future run.
    """
    from flows.doctor import examine

    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    bad = 0
    for finding in examine(directory, tracking):
        bad += finding.state == "bad"
        advice = f"; {finding.advice}" if finding.advice else ""
        state = text(f"{finding.state:<4}", colours[finding.state])
        line = text(without_credentials(f" {finding.what:<13} {finding.told}{advice}"))
        console.print(state + line, soft_wrap=True)
    raise typer.Exit(FAILED if bad else DONE)


def layers(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="the job file; relative paths start at its folder")
    ],
) -> None:
    """List the layers that could be the target layer of a job's model, from the logits backwards.

    The layer that the job takes is marked with *. The shape is that of one image's activations. The units are
    what can be masked, and the prefix is the number of tokens before those of the patches. The network is cut
    by fx, by export or by replay. The cost is the number of operations (of products and convolutions) behind
    the layer, as a share of the whole network's.
    """
    from flows.job import Job
    from flows.job_file import read_job
    from flows.layers import layers_of

    table = Table("", "layer", "shape", "grid", "units", "prefix", "cut", "cost", "what was seen")
    with refusals():
        rows = list(layers_of(read_job(job, Job)))
    marked = "; ".join(dict.fromkeys(row.choice or "named by the job" for row in rows if row.default))
    table.caption = text(
        f"*: what the job takes ({marked or 'no layer can be taken'}). cost: operations behind the layer, as "
        "a share of the network's"
    )
    table.caption_justify = "left"
    for row in rows:
        place, layout = row.place, row.place.layout
        assert layout is not None
        table.add_row(
            "*" if row.default else "",
            text(place.layer),
            "x".join(map(str, layout.shape)),
            f"{layout.grid[0]}x{layout.grid[1]}",
            f"{layout.units.count} {layout.units.kind}",
            str(layout.prefix_tokens),
            row.way,
            "" if row.cost is None else f"{row.cost:.0%}",
            text(f"refused: {place.refused}" if place.refused else place.reach),
        )
    console.print(table)


def look(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="JOB.toml|FOLDER|FILE",
            help="a job file, a folder of images, a CSV listing, a Parquet file of images, or a tar",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.png", help="file of the picture; by default look-NAME.png here"),
    ] = None,
) -> None:
    """Show what a dataset holds, and ten of its images as the job's model will see them, in a picture.

    Boxes are green in the picture, masks pink, and yellow where they do not count. No network is loaded. The
    job file needs no table but [dataset]; without a model, images are shown as they are read. All items are
    counted, and 100 of them are read. The exit code is 1 if none of these can be used.
    """
    from flows.look import look as looked

    with refusals():
        found = looked(what, output)
    listed(found.facts)
    for line in found.more:
        tell(line)
    if found.nothing:
        raise typer.Exit(FAILED)
