"""Terminal output during a job and after it.

Names, paths and errors come from data. They are printed as they are: Rich looks for no markup, emoji names or
numbers in them, and control characters are written as escapes.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from storage.characters import shown
from storage.credentials import without_credentials
from tasks.results.ranking_table import ranking_table

# Without a terminal Rich assumes 80 columns, which breaks tables and paths in log files.
_WIDTH = None if Console().is_terminal else 160
console = Console(width=_WIDTH, markup=False, emoji=False, highlight=False)
_SCORES = (
    "mean and 95 % bootstrap interval over images; ranks count the images that all explainers have scores "
    "for, and n is told where an explainer has more"
)
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


def score_tables(summary: pa.Table) -> list[Table]:
    """Draw the means with 95 % intervals: one row per metric, one column per explainer, the best one bold.

    Ranks are computed on the images that all explainers have in common. If an explainer has more images than
    these, its cell shows how many it has. The columns are split over several tables if one table does not fit
    the terminal.
    """
    rows = summary.to_pylist()
    cells = {(row["metric"], row["explainer"]): _cell(row) for row in rows}
    better = {row["metric"]: row["better"] for row in rows}
    explainers = list(dict.fromkeys(row["explainer"] for row in rows))
    fitting = max(1, (console.width - 36) // 17)  # 36 characters for the metric, 17 per explainer
    tables = []
    for start in range(0, len(explainers), fitting):
        columns = explainers[start : start + fitting]
        table = Table(title=_SCORES, title_justify="left")
        table.add_column("metric", no_wrap=True)
        for explainer in columns:
            table.add_column(text(explainer), justify="right", no_wrap=True)
        for metric, direction in better.items():
            named = Text.assemble(text(metric), "\n", (WORDS[direction], "dim"))
            table.add_row(named, *(cells[metric, explainer] for explainer in columns))
        tables.append(table)
    return tables


def standing_table(summary: pa.Table, costs: pa.Table) -> Table:
    """Draw the rows of :func:`tasks.results.ranking_table.ranking_table` as one table."""
    rows = ranking_table(summary, costs)
    table = Table(
        title="rank over metrics, and cost; won: metrics on which it is first", title_justify="left"
    )
    for name in rows[0]:
        table.add_column(
            name, no_wrap=name == "explainer", justify="left" if name == "explainer" else "right"
        )
    for row in rows:
        table.add_row(*map(text, row.values()))
    return table


def comparison_tables(summary: pa.Table, comparisons: pa.Table) -> list[Table]:
    """Draw one table per metric that ranks: explainers by rank, and each compared with the best one."""
    wins = {(row["metric"], row["explainer"]): row["wins"] for row in comparisons.to_pylist() if row["best"]}
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for row in summary.to_pylist():
        if row["better"]:
            by_metric.setdefault(row["metric"], []).append(row)
    tables = []
    for metric, rows in by_metric.items():
        table = Table(title=text(f"{metric}, {WORDS[rows[0]['better']]}"), title_justify="left")
        table.add_column("explainer", no_wrap=True)
        for name in ("rank", "mean", "95 %", "difference to the best", "95 %", "wins", "p (Holm)"):
            table.add_column(name, justify="right")
        for row in sorted(rows, key=lambda row: (math.isnan(row["rank"]), row["rank"])):
            numbers = [
                _range(row[key], row[f"{prefix}low"], row[f"{prefix}high"])
                for key, prefix in (("mean", ""), ("difference", "difference_"))
            ]
            won = wins.get((metric, row["explainer"]), math.nan)
            tested = ["-" if math.isnan(won) else f"{won:.0%}", _p_value(row["p_holm"])]
            table.add_row(text(row["explainer"]), f"{row['rank']:g}", *numbers[0], *numbers[1], *tested)
        tables.append(table)
    return tables


def _range(value: float, low: float, high: float) -> tuple[str, str]:
    """Format a value and its interval; both are "-" if the value is NaN."""
    return ("-", "-") if math.isnan(value) else (f"{value:.3f}", f"{low:.3f} - {high:.3f}")


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _cell(row: dict[str, Any]) -> Text:
    """Format the mean and the interval of one explainer and one metric, on two lines."""
    if not row["n"]:
        return Text("-")
    # The rank may use fewer images than the explainer has: those that all explainers have.
    count = f"n = {row['n']:,}  " if row["better"] and row["n"] > row["common"] else ""
    mean = (f"{row['mean']:.3f}", "bold" if row["best"] else "")
    return Text.assemble(count, mean, "\n", (f"{row['low']:.3f} - {row['high']:.3f}", "dim"))
