"""Tables of a run for papers: the leaderboard of the headline columns, and all ranked columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from storage.run import Run
from tasks.results.headline import headline
from tasks.results.leaderboard import BoardColumn, Leaderboard, Row, read_leaderboard
from tasks.results.numbers import NONE, number

MARK = "†"


@dataclass(frozen=True)
class Number:
    """A cell of a table.

    Attributes
    ----------
    mean
        The mean as a text; a dash without a value.
    interval
        The ends of the 95 % interval as texts; None without one.
    best
        Whether no row is better.
    mark
        Whether the explainer is better than the best control, as a test shows.
    """

    mean: str
    interval: tuple[str, str] | None
    best: bool
    mark: bool


@dataclass(frozen=True)
class PaperTable:
    """A table as any form of it is written.

    Attributes
    ----------
    name
        What its file is called.
    title
        Its caption.
    corner
        The heading of the first column.
    heads
        The headings of the other columns.
    lines
        The names of the rows with their cells, explainers first.
    band
        How many of the last rows are controls; 0 if rows are no explainers.
    """

    name: str
    title: str
    corner: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Number]]]
    band: int


def tables_of(run: Run) -> list[PaperTable]:
    """The tables: explainers by the headline columns, and all ranked columns by explainers."""
    short, whole = read_leaderboard(run, headline(run.manifest)), read_leaderboard(run)
    return [_leaderboard(run, short), _metrics(run, whole)]


def _leaderboard(run: Run, board: Leaderboard) -> PaperTable:
    rows = [*board.explainers, *board.controls]
    columns = [(column, board.decimals(name)) for name, column in board.columns.items()]
    cells = [[_number(row, *column) for column in columns] for row in rows]
    heads = [_headed(column) for column in board.columns.values()]
    lines = [(row.name, own) for row, own in zip(rows, cells, strict=True)]
    return PaperTable("leaderboard", _title(run, board), "explainer", heads, lines, len(board.controls))


def _metrics(run: Run, board: Leaderboard) -> PaperTable:
    rows = [*board.explainers, *board.controls]
    lines = [
        (_headed(column), [_number(row, column, board.decimals(name)) for row in rows])
        for name, column in board.columns.items()
    ]
    return PaperTable("metrics", _title(run, board), "metric", [row.name for row in rows], lines, 0)


def _title(run: Run, board: Leaderboard) -> str:
    """What stands below a table: what is compared, and what the type and the mark say."""
    told = f"{run.name}: means over up to {board.images:,} {board.inputs}. Bold: no row is better."
    if board.controls:
        told += (
            f" {MARK}: better than the best control, by Wilcoxon's test with Holm's correction for all "
            "comparisons of a metric."
        )
    pooled = [column.name for column in board.columns.values() if column.pooled]
    return told + (f" Without tests: {', '.join(pooled)}." if pooled else "")


def _headed(column: BoardColumn) -> str:
    """The name of a column with an arrow towards better numbers."""
    return f"{column.name} {'↑' if column.better == 'higher' else '↓'}"


def _number(row: Row, column: BoardColumn, decimals: int) -> Number:
    cell = row.cells.get(column.name)
    if cell is None or math.isnan(cell.mean):
        return Number(NONE, None, best=False, mark=False)
    ends = None if math.isnan(cell.low) else (number(cell.low, decimals), number(cell.high, decimals))
    beaten = column.best_control is not None and cell.over.get(column.best_control) is True
    return Number(number(cell.mean, decimals), ends, cell.best, beaten)
