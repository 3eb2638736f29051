"""Terminal output during a job and after it.

Names, paths and errors come from data. They are printed as they are: Rich looks for no markup, emoji names or
numbers in them, and control characters are written as escapes.
"""

from __future__ import annotations

import math
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from storage.characters import shown
from storage.credentials import without_credentials
from tasks.results.numbers import NONE, aligned, column_of, decimals_of, number

if TYPE_CHECKING:
    from storage.run import Run
    from tasks.results.leaderboard import Cell, Leaderboard

# Without a terminal Rich assumes 80 columns, which breaks tables and paths in log files.
_WIDTH = None if Console().is_terminal else 160
console = Console(width=_WIDTH, markup=False, emoji=False, highlight=False)
_TABLE = 100  # columns of the terminal that the leaderboard may take
_NAME, _HEADING = 24, 14  # columns for the name of an explainer, and for a line of the name of a metric
_NO_MARKS = "   "  # as long as the marks behind a number
LINE_SECONDS = 10.0  # between two lines of progress if there is no terminal for a bar
DONE, FAILED, USAGE = 0, 1, 2  # exit codes
WORDS = {"higher": "higher is better", "lower": "lower is better", None: "for reference"}


def text(told: object, style: str = "") -> Text:
    """Return what is printed for a text from data: one line, as it is, without control characters."""
    line = shown(told)
    # A terminal that cannot show a character gets its number.
    return Text(line.encode(console.encoding, "backslashreplace").decode(console.encoding), style)


def tell(told: object) -> None:
    """Print one line, which the terminal and not Rich breaks if it is too long."""
    console.print(text(told), soft_wrap=True)


def listed(lines: dict[str, str]) -> None:
    """Print one line per entry, with the values aligned."""
    width = max(map(len, lines))
    for key, value in lines.items():
        tell(f"{key:<{width}}  {value}")


def fail(message: str, code: int) -> typer.Exit:
    """Print one line, without passwords, on standard error; return the exception that the caller raises."""
    print(f"floodlit: {shown(without_credentials(message))}", file=sys.stderr)  # noqa: T201
    return typer.Exit(code)


class Progress:
    """A context manager that shows a progress bar on a terminal, and lines of text elsewhere.

    Parameters
    ----------
    total
        Steps that are still to do.
    already
        Steps that were done before; they count as ended.
    """

    def __init__(self, total: int, already: int) -> None:
        self.total, self.ended = total + already, already
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("started", total=self.total, completed=already)
        self._spoke = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def percent(self) -> float:
        """Share of the job's steps that have ended, in percent."""
        return 100 * self.ended / self.total if self.total else 100.0

    def advance(self, label: str) -> None:
        """Count one more step as ended; ``label`` names it."""
        self.reach(self.ended + 1, label)

    def reach(self, ended: int, label: str) -> None:
        """Set the number of steps that have ended; ``label`` names the last one."""
        self.ended = ended
        self._bar.update(self._task, completed=self.ended, description=text(label).plain)
        if not console.is_terminal and time.monotonic() - self._spoke > LINE_SECONDS:
            self._spoke = time.monotonic()
            tell(f"{self.ended}/{self.total} steps ({self.percent:.0f} %), last: {label}")


def tell_results(run: Run) -> None:
    """Print the leaderboard of a finished run in its headline columns, and the sentence that judges it.

    Between them stands why metrics have no value.
    """
    from storage.parquet import read_table
    from tasks.results.headline import headline
    from tasks.results.leaderboard import read_leaderboard
    from tasks.results.remarks import unscored
    from tasks.results.verdict import verdict

    tell_board(read_leaderboard(run, headline(run.manifest)))
    for line in unscored(read_table(run.summary)):
        tell(line)
    tell(verdict(read_leaderboard(run)))
    tell_findings(run)


def tell_findings(run: Run) -> None:
    """Print what was found in a run, one line each, and how many suspicions were not confirmed."""
    from tasks.findings.told import lines_of

    for line in lines_of(run):
        tell(line)


def tell_board(board: Leaderboard) -> None:
    """Print the leaderboard as one table, and lines that explain the order of its rows and its marks.

    Parameters
    ----------
    board
        The leaderboard in the headline columns.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("explainer", overflow="fold", max_width=_NAME)
    for column in board.columns.values():
        better = (f"\n{WORDS[column.better]}", "dim")
        table.add_column(Text.assemble(_broken(column.name), better), justify="right", overflow="fold")
    table.add_column("ms per map", justify="right")
    columns = [_column(board, name) for name in board.columns]
    times = aligned(column_of([row.milliseconds for row in board.explainers]))
    columns.append([Text(time) for time in times])
    for row, *cells in zip(board.explainers, *columns, strict=False):
        table.add_row(text(row.name), *cells)
    if board.controls:
        table.add_section()
        table.add_row("best control", *(column[-1] for column in columns[:-1]), "")
    console.print(table, width=min(console.width, _TABLE))
    for line in _legend(board):
        tell(line)


def _broken(name: str, style: str = "", end: str = "") -> Text:
    """A long name on several lines, broken behind underscores, each with ``end`` at its end."""
    lines = [""]
    for part in re.findall(r"[^_]*_*", name):
        if lines[-1] and len(lines[-1]) + len(part) > _HEADING:
            lines.append("")
        lines[-1] += part
    return Text("\n").join(text(line + end, style) for line in lines)


def _legend(board: Leaderboard) -> list[str]:
    """What the numbers, their order and the marks of a table mean, as far as they occur."""
    from tasks.results.leaderboard import ORDER

    rows = (*board.explainers, *board.controls)
    cells = [cell for row in rows for cell in row.cells.values()]
    marks = {
        "+ beats every control (Wilcoxon, Holm, p < 0.05)": any(cell.beats for cell in cells),
        "* best of its column": any(cell.best for cell in cells),
        f"n= fewer {board.inputs}": any(cell.fewer and cell.n for cell in cells),
    }
    dashes = {
        f"{NONE} no value, for a reason below": any(not cell.n for cell in cells),
        f"{NONE} as ms per map: no map was timed": any(row.milliseconds is None for row in board.explainers),
    }
    told = [f"means; {ORDER}" if len(board.explainers) > 1 else "means"]
    told += ["; ".join(what for what, occurs in each.items() if occurs) for each in (marks, dashes)]
    return [line for line in told if line]


def _column(board: Leaderboard, column: str) -> list[Text]:
    """The numbers of a column: those of the explainers, and that of the best control with its name below."""
    best = board.columns[column].best_control
    cells = [row.cells.get(column) for row in board.explainers]
    cells.append(next((row.cells[column] for row in board.controls if row.name == best), None))
    there = [None if cell is None or not cell.n else cell.mean for cell in cells]
    numbers = aligned([number(mean, board.decimals(column)) for mean in there])
    told = [_cell(cell, mean) for cell, mean in zip(cells, numbers, strict=True)]
    if best is not None:
        told[-1] = Text.assemble(told[-1], "\n", _broken(best, "dim", " " * len(_NO_MARKS)))
    return told


def _cell(cell: Cell | None, mean: str) -> Text:
    """The mean with its marks; a line on the number of images where that is an exception."""
    if cell is None or not cell.n:
        return Text(f"{mean}{_NO_MARKS}")
    marks = f" {'+' if cell.beats else ' '}{'*' if cell.best else ' '}"
    fewer = f"\nn={cell.n:,}{_NO_MARKS}" if cell.fewer else ""
    return Text.assemble((mean, "bold" if cell.best else ""), marks, (fewer, "dim"))


def comparison_tables(summary: pa.Table, comparisons: pa.Table, images: int) -> list[Table]:
    """Draw one table per metric that ranks: explainers by rank, and each compared with the best one.

    Intervals, wins and p-values are drawn where they have a meaning: a single image has none of them, and a
    column of a metric with one number for all images has neither wins nor p-values.
    """
    wins = {(row["metric"], row["explainer"]): row["wins"] for row in comparisons.to_pylist() if row["best"]}
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for row in summary.to_pylist():
        if row["better"]:
            by_metric.setdefault(row["metric"], []).append(row)
    several = images > 1
    tables = []
    for metric, rows in by_metric.items():
        tested = several and any(not math.isnan(row["p_value"]) for row in rows)
        names = [*("rank", "mean" if several else "value"), *(["95 %"] if several else [])]
        names += ["difference to the best", *(["95 %"] if several else [])]
        table = Table(title=text(f"{metric}, {WORDS[rows[0]['better']]}"), title_justify="left")
        table.add_column("explainer", no_wrap=True)
        for name in (*names, *(("wins", "p (Holm)") if tested else ())):
            table.add_column(name, justify="right")
        decimals = decimals_of(row["mean"] for row in rows)
        for row in sorted(rows, key=lambda row: (math.isnan(row["rank"]), row["rank"])):
            cells = [_rank(row["rank"])]
            for key, prefix in (("mean", ""), ("difference", "difference_")):
                ends = (number(row[f"{prefix}{end}"], decimals) for end in ("low", "high"))
                interval = NONE if math.isnan(row[key]) else " - ".join(ends)
                cells += [number(row[key], decimals), interval][: 1 + several]
            if tested:
                won = wins.get((metric, row["explainer"]), math.nan)
                cells += ["-" if math.isnan(won) else f"{won:.0%}", _p_value(row["p_holm"])]
            table.add_row(text(row["explainer"]), *cells)
        tables.append(table)
    return tables


def _rank(rank: float) -> str:
    return "-" if math.isnan(rank) else f"{rank:g}"


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"
