"""CSV: the tables of a run as they are, for a spreadsheet or another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from storage.parquet import read_table
from storage.run import Run
from tasks.export.registry import EVERY, exports
from tasks.results.leaderboard import Row, read_leaderboard

LEADERBOARD = pa.schema(
    [
        ("explainer", pa.string()),
        ("control", pa.bool_()),
        ("metric", pa.string()),
        ("better", pa.string()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
        ("best", pa.bool_()),
        ("best_control", pa.string()),
        ("beats_best_control", pa.bool_()),
        ("beats_every_control", pa.bool_()),
    ]
)


@exports.register
class Csv:
    """``leaderboard.csv``, ``summary.csv``, ``comparisons.csv`` and ``costs.csv``."""

    name: ClassVar[str] = "csv"
    title: ClassVar[str] = "the tables of the run as CSV"
    modalities: ClassVar[frozenset[str]] = EVERY

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write the files; a cell is empty where a number is not known."""
        tables = {
            "leaderboard": pa.Table.from_pylist(_rows(run), LEADERBOARD),
            "summary": read_table(run.summary),
            "comparisons": read_table(run.comparisons),
            "costs": read_table(run.costs),
        }
        for name, table in tables.items():
            pyarrow.csv.write_csv(_plain(table), folder / f"{name}.csv")
        return [f"{name}.csv: {len(table):,} rows" for name, table in tables.items()]


def _rows(run: Run) -> list[dict[str, Any]]:
    """A row per explainer or control and ranked column; whether it wins is empty where no test can tell."""
    board = read_leaderboard(run)
    return [
        {
            "explainer": row.name,
            "control": row in board.controls,
            "metric": name,
            "better": column.better,
            "best_control": column.best_control,
            **_cell(row, name, column.best_control),
        }
        for row in (*board.explainers, *board.controls)
        for name, column in board.columns.items()
        if name in row.cells
    ]


def _cell(row: Row, column: str, control: str | None) -> dict[str, Any]:
    cell = row.cells[column]
    told = {"mean": cell.mean, "low": cell.low, "high": cell.high, "n": cell.n, "best": cell.best}
    beaten = None if control is None else cell.over.get(control)
    return told | {"beats_best_control": beaten, "beats_every_control": cell.beats}


def _plain(table: pa.Table) -> pa.Table:
    """A table without structs, whose fields become columns such as ``excluded_by.ok``, and without NaN."""
    flat = table.flatten()
    columns = [
        pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
        for column in flat.columns
    ]
    return pa.table(dict(zip(flat.column_names, columns, strict=True)))
