"""Stage 5, after the last shard: merge, summarise and draw the results; show them in Prefect and MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.coordinates import write_coordinates
from storage.files import on_this_machine
from storage.findings import finding_table
from storage.layout import PICTURES, TABLES
from storage.places import is_there
from storage.records import SUMMARY, drop_record, write_record
from storage.run import Run
from storage.samples import merge_samples
from storage.stage_facts import StageFacts
from storage.tracking import Result, page_of, track
from tasks.artifacts import show_links, show_results
from tasks.findings.decision import State
from tasks.findings.results import write_findings
from tasks.page.charts.chart import Chart
from tasks.page.charts.curves import write_curves
from tasks.page.report import write_report
from tasks.pictures.contact_sheet import draw_contact_sheet
from tasks.results.accuracy import Accuracy, write_accuracy
from tasks.results.costs import write_costs
from tasks.results.headline import headline
from tasks.results.leaderboard import Leaderboard, Row, read_leaderboard
from tasks.results.statistics import Floats
from tasks.results.summary import mean_curves, summarise
from tasks.results.verdict import verdict

Made = TypeVar("Made")


@task(name="summary", task_run_name="summary", cache_policy=NO_CACHE)
def summary(root: str, tracking: str) -> dict[str, Any]:
    """Write the tables of a run (samples, summary, comparisons, costs), its accuracy.json and its pictures.

    The results are then shown in Prefect and logged to MLflow. This runs in the process of the flow, since
    only that process may write to MLflow.

    Parameters
    ----------
    root
        The run folder.
    tracking
        MLflow's address.

    Returns
    -------
    dict
        ``rows``, those of summary.parquet; ``pictures``, how many there are.

    Raises
    ------
    storage.tracking.TrackingError
        If MLflow fails. The files have been written by then.
    """
    run = Run.open(root)
    written = write_results(run)
    found = write_findings(run)
    _tried(partial(write_report, curves=written.drawn), run, run.page)
    scores, costs, pictures = written.scores, written.costs, written.pictures
    board, told = read_leaderboard(run, headline(run.manifest)), verdict(read_leaderboard(run))
    results = {
        row.name: Result(
            parameters={"explainer": row.name, **run.explainers[row.name].parameters},
            numbers=_numbers(row),
            curves={
                c: curve.tolist()
                for (e, c), curve in written.curves.items()
                if e == row.name and c in board.columns
            },
        )
        for row in (*board.explainers, *board.controls)
    }
    with ExitStack() as copies:
        shown = [*pictures, *([run.page] if is_there(run.page) else [])]
        files = [copies.enter_context(on_this_machine(path)) for path in shown]
        tables = {"summary.csv": scores, "costs.csv": costs}
        numbers = _best(board, written.accuracy)
        if run.manifest.findings:
            tables["findings.csv"] = finding_table(found).drop_columns("exemplars")  # CSV has no lists
            for status in (State.FINDING, State.CANDIDATE):
                numbers[f"{status}s"] = float(sum(row["status"] == status for row in found))
        whole = Result(_parameters(run), numbers, {}, tables)
        tracked = track(tracking, run.root, run.name, run.hash, whole, results, files, told)
    show_results(run, scores, board, told, pictures, written.accuracy)
    show_links(run, tracking, page_of(tracking, tracked))
    return {"rows": len(scores), "pictures": len(pictures)}


@dataclass(frozen=True)
class Written:
    """What :func:`write_results` wrote.

    Attributes
    ----------
    scores, costs
        The tables ``summary.parquet`` and ``costs.parquet``.
    accuracy
        The content of ``accuracy.json``; None without labels.
    curves
        The mean curves by explainer and column.
    drawn
        Their chart; None if it could not be drawn.
    pictures
        The files of the pictures.
    """

    scores: pa.Table
    costs: pa.Table
    accuracy: Accuracy | None
    curves: dict[tuple[str, str], Floats]
    drawn: Chart | None
    pictures: list[Path]


def write_results(run: Run) -> Written:
    """Write the tables and pictures of the whole run, and last the record that signs them."""
    drop_record(run.root, SUMMARY)  # so that it never signs files that are just being replaced
    merge_samples(run.root, run.shards)
    coordinates = write_coordinates(run.root, run.layout)
    accuracy = write_accuracy(run)
    scores, costs, curves = summarise(run), write_costs(run), mean_curves(run)
    draw_contact_sheet(run)
    drawn = _tried(write_curves, run, run.report / "curves.png")
    pictures = [path for name in PICTURES if (path := run.root / name).exists()]
    files = [*(run.root / name for name in TABLES), *pictures, *([run.accuracy] if accuracy else [])]
    files += coordinates
    write_record(
        run.root,
        SUMMARY,
        rows=run.rows,
        statuses={},
        files=files,
        seconds=0.0,
        worker="",
        facts=StageFacts(explainers=tuple(run.explainers)),
    )
    return Written(scores, costs, accuracy, curves, drawn, pictures)


def _tried(write: Callable[[Run], Made], run: Run, file: Path) -> Made | None:
    """Write a file that shows the results; if that fails, the results are complete without it.

    An earlier version of the file is removed then, since it would show other results, and None is returned.
    """
    try:
        return write(run)
    except Exception:  # whatever is wrong with a picture must not keep the numbers from being tracked
        file.unlink(missing_ok=True)
        logging.getLogger(__name__).exception("%s could not be written", file)
        return None


def _numbers(row: Row) -> dict[str, float]:
    """The headline means of an explainer and its time per map, as MLflow's metrics."""
    spent = {} if row.milliseconds is None else {"ms_per_map": row.milliseconds}
    return {name: cell.mean for name, cell in row.cells.items() if cell.n} | spent


def _best(board: Leaderboard, accuracy: Accuracy | None) -> dict[str, float]:
    """The accuracy, and the headline means of the best explainer and control, as MLflow's metrics."""
    found = {} if accuracy is None else {name: v for name, v in accuracy.numbers.items() if v is not None}
    for name, column in board.columns.items():
        means = [row.cells[name].mean for row in board.explainers if name in row.cells and row.cells[name].n]
        if means:
            found[f"best/{name}"] = max(means) if column.better == "higher" else min(means)
        controls = {row.name: row.cells[name].mean for row in board.controls if name in row.cells}
        if column.best_control is not None:
            found[f"best_control/{name}"] = controls[column.best_control]
    return found


def _parameters(run: Run) -> dict[str, Any]:
    """The resolved job as flat keys, as MLflow shows parameters."""
    flat: dict[str, Any] = {}
    for key in ("name", "target", "seed"):
        flat[key] = run.job[key]
    for table in ("dataset", "model", "compute"):
        flat |= {f"{table}.{key}": value for key, value in run.job[table].items() if value is not None}
    return flat | {
        "images": run.rows,
        "model_fingerprint": run.model_fingerprint,
        "run_hash": run.hash,
    }
