"""What a person sees while and after a job runs."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

# Without a terminal Rich assumes 80 columns, which breaks tables and paths in log files.
console = Console() if Console().is_terminal else Console(width=160)
LINE_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on
WORDS = {"higher": "higher is better", "lower": "lower is better", None: "for reference"}


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
    """Means with 95 % intervals, a row per metric, a column per explainer; the best judged value is bold.

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


def _cell(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "-"
    mean = f"[bold]{row['mean']:.3f}[/bold]" if row["best"] else f"{row['mean']:.3f}"
    return f"{mean}\n[dim]{row['low']:.3f} - {row['high']:.3f}[/dim]"
