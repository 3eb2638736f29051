"""What a person sees while and after a job runs."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from statistics import mean
from typing import Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

# Without a terminal Rich assumes 80 columns, which breaks tables and paths in log files.
console = Console() if Console().is_terminal else Console(width=160)
LINE_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on
DONE, FAILED, USAGE = 0, 1, 2  # exit codes
BESIDE_FLOAT32 = {  # columns of costs.parquet where a run computes in lower precision
    "rank_correlation": "rank corr. to float32",
    "worst_rank_correlation": "worst rank corr.",
    "difference": "difference to float32",
    "worst_difference": "worst difference",
}
WORDS = {"higher": "higher is better", "lower": "lower is better", None: "for reference"}


def fail(message: str, code: int) -> typer.Exit:
    """Print one clear line on standard error; raise what is returned."""
    print(f"floodlit: {message}", file=sys.stderr)  # noqa: T201
    return typer.Exit(code)


class Progress:
    """A progress bar on a terminal, a line now and then elsewhere. A context manager."""

    def __init__(self, total: int, already: int) -> None:
        self.total, self.ended = total + already, already
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("begun", total=self.total, completed=already)
        self._spoke = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def percent(self) -> float:
        """Steps that ended, of all steps of the job."""
        return 100 * self.ended / self.total if self.total else 100.0

    def advance(self, label: str) -> None:
        """One more step ended."""
        self.reach(self.ended + 1, label)

    def reach(self, ended: int, label: str) -> None:
        """So many steps have ended."""
        self.ended = ended
        self._bar.update(self._task, completed=self.ended, description=label)
        if not console.is_terminal and time.monotonic() - self._spoke > LINE_SECONDS:
            self._spoke = time.monotonic()
            console.print(f"{self.ended}/{self.total} steps ({self.percent:.0f} %), last: {label}")


def score_tables(summary: pa.Table) -> list[Table]:
    """Means with 95 % intervals, a row per metric, a column per explainer; what ranks first is bold.

    An explainer that has more images than all others have says how many; ranks are on those in common.

    As many tables as it takes for the columns to fit the terminal.
    """
    rows = summary.to_pylist()
    cells = {(row["metric"], row["explainer"]): _cell(row) for row in rows}
    better = {row["metric"]: row["better"] for row in rows}
    explainers = list(dict.fromkeys(row["explainer"] for row in rows))
    fitting = max(1, (console.width - 36) // 17)
    tables = []
    for start in range(0, len(explainers), fitting):
        shown = explainers[start : start + fitting]
        table = Table(title="mean and 95 % bootstrap interval over images", title_justify="left")
        table.add_column("metric", no_wrap=True)
        for explainer in shown:
            table.add_column(explainer, justify="right", no_wrap=True)
        for metric, direction in better.items():
            table.add_row(f"{metric}\n[dim]{WORDS[direction]}[/dim]", *(cells[metric, e] for e in shown))
        tables.append(table)
    return tables


def standing(summary: pa.Table, costs: pa.Table) -> list[dict[str, Any]]:
    """A row per explainer, the best mean rank first: ranks over the metrics that judge, and what it costs.

    The rank of an explainer is among those of the run; "won" counts metrics on which it is the best. Where
    the maps were compared with those of float32, their mean and worst rank correlation and difference follow.
    """
    judged = [row for row in summary.to_pylist() if not math.isnan(row["rank"])]
    ranks: dict[str, list[float]] = {}
    for row in judged:
        ranks.setdefault(row["explainer"], []).append(row["rank"])
    won = Counter(row["explainer"] for row in judged if row["best"])
    spent = {row["explainer"]: row for row in costs.to_pylist()}
    size = costs["images"][0].as_py()
    compared = [key for key in BESIDE_FLOAT32 if any(row.get(key) is not None for row in spent.values())]
    return [
        {
            "explainer": name,
            "mean rank": f"{mean(ranks[name]):.2f} of {len(ranks[name])}" if name in ranks else "-",
            "won": str(won[name]),
            "ms a map": _cost(spent[name]["milliseconds"]),
            "forward passes": _cost(spent[name]["forward_passes"]),
            f"MiB for {size} images": _cost(spent[name]["peak_mib"]),
            **{BESIDE_FLOAT32[key]: _cost(spent[name][key], 4) for key in compared},
        }
        for name in sorted(spent, key=lambda name: mean(ranks.get(name, [math.inf])))
    ]


def _cost(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def standing_table(summary: pa.Table, costs: pa.Table) -> Table:
    """:func:`standing`, drawn."""
    rows = standing(summary, costs)
    table = Table(title="rank over metrics, and cost", title_justify="left")
    for name in rows[0]:
        table.add_column(
            name, no_wrap=name == "explainer", justify="left" if name == "explainer" else "right"
        )
    for row in rows:
        table.add_row(*row.values())
    return table


def comparison_tables(summary: pa.Table, comparisons: pa.Table) -> list[Table]:
    """A table a metric that judges: the contenders by rank, and each beside the best one."""
    wins = {(row["metric"], row["explainer"]): row["wins"] for row in comparisons.to_pylist() if row["best"]}
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for row in summary.to_pylist():
        if row["better"]:
            by_metric.setdefault(row["metric"], []).append(row)
    tables = []
    for metric, rows in by_metric.items():
        table = Table(title=f"{metric}, {WORDS[rows[0]['better']]}", title_justify="left")
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
            table.add_row(row["explainer"], f"{row['rank']:g}", *numbers[0], *numbers[1], *tested)
        tables.append(table)
    return tables


def _range(value: float, low: float, high: float) -> tuple[str, str]:
    return ("-", "-") if math.isnan(value) else (f"{value:.3f}", f"{low:.3f} - {high:.3f}")


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _cell(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "-"
    mean = f"[bold]{row['mean']:.3f}[/bold]" if row["best"] else f"{row['mean']:.3f}"
    if row["better"] and row["n"] > row["common"]:
        mean = f"n = {row['n']:,}  {mean}"  # ranked on fewer, those that all explainers have
    return f"{mean}\n[dim]{row['low']:.3f} - {row['high']:.3f}[/dim]"
