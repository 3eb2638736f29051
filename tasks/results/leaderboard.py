"""The leaderboard of a run: what its tables say of explainers and controls, column by column.

It only reads ``summary.parquet``, ``comparisons.parquet``, ``costs.parquet`` and the manifest, and computes
nothing anew. The terminal, Prefect, the report and the exports draw the same one, with explainers in the same
order, whichever columns they show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from explainers.control_names import CONTROLS
from explainers.models.modality import MODALITIES
from storage.manifest import ColumnEntry, ExplainerEntry, Manifest
from storage.parquet import read_table
from storage.run import Run
from tasks.results.headline import headline, ranked
from tasks.results.numbers import decimals_of

LEVEL = 0.05  # a corrected p-value below it tells an explainer from a control
ROUNDING = 1e-6  # of a column's range: a smaller difference is one of rounding, and no win
ORDER = "explainers in the order of their mean rank in the headline metrics, best first"


@dataclass(frozen=True)
class Cell:
    """One explainer or control in one column.

    Attributes
    ----------
    mean, low, high
        The mean and its 95 % interval; NaN without a value.
    n
        On how many images.
    fewer
        Whether another row of the column has more images.
    best
        Whether no row is better by more than rounding; several rows may be the best.
    over
        For an explainer, by control that has a value in the column: whether the explainer is better. It is if
        Wilcoxon's test tells the two apart after Holm's correction for all comparisons of the column, and
        both the mean and the majority of the images favour the explainer, the mean by more than rounding.
        None: no test can tell, because the column has one number for all images, or because the two have so
        few images in common that winning on all of them would not be enough. Empty for a control.
    reason
        Why there is no value; None if there is one.
    """

    mean: float
    low: float
    high: float
    n: int
    fewer: bool
    best: bool
    over: Mapping[str, bool | None]
    reason: str | None

    @property
    def beats(self) -> bool | None:
        """Whether the explainer is better than every control that has a value; None if that is not known."""
        if False in self.over.values():
            return False
        return None if not self.over or None in self.over.values() else True


@dataclass(frozen=True)
class BoardColumn:
    """One ranked column of a metric.

    Attributes
    ----------
    name, better
        Its name, and "higher" or "lower".
    n
        The most images that a row has.
    best_control
        The control with the best rank, the first one if several share it; None if no control has a rank.
    references
        The reference columns that belong to it, with their number.
    pooled
        Whether it has one number for all images, and so no tests.
    """

    name: str
    better: str
    n: int
    best_control: str | None
    references: Mapping[str, float]
    pooled: bool


@dataclass(frozen=True)
class Row:
    """One explainer or control: its cells by column, and its time per map, which is None if not known."""

    name: str
    cells: Mapping[str, Cell]
    milliseconds: float | None


@dataclass(frozen=True)
class Leaderboard:
    """Explainers and controls by columns.

    Attributes
    ----------
    columns
        The columns in the order asked for, by name.
    explainers, controls
        The rows: explainers as :func:`_standings` orders them, best first, and controls as in the job.
    images
        The most images on which a column is known.
    inputs
        The word for several inputs, such as "images".
    """

    columns: Mapping[str, BoardColumn]
    explainers: Sequence[Row]
    controls: Sequence[Row]
    images: int
    inputs: str

    def decimals(self, column: str) -> int:
        """Return the decimals with which the numbers of a column are written."""
        rows = (*self.explainers, *self.controls)
        return decimals_of(row.cells[column].mean for row in rows if column in row.cells)


def is_control(name: str, entry: ExplainerEntry) -> bool:
    """Whether an explainer of a run, which may have a label of its own, is a control."""
    return (entry.name or name) in CONTROLS


def read_leaderboard(run: Run, columns: Sequence[str] | None = None) -> Leaderboard:
    """Make the leaderboard of a run whose tables have been written; see :func:`leaderboard`."""
    summary, comparisons, costs = map(read_table, (run.summary, run.comparisons, run.costs))
    return leaderboard(summary, comparisons, costs, run.manifest, columns)


def leaderboard(
    summary: pa.Table,
    comparisons: pa.Table,
    costs: pa.Table,
    manifest: Manifest,
    columns: Sequence[str] | None = None,
) -> Leaderboard:
    """Make the leaderboard of a run.

    Parameters
    ----------
    summary, comparisons, costs
        The tables of the run. What a job has added since they were written is left out.
    manifest
        The manifest of the run.
    columns
        Ranked columns; all of them by default.
    """
    rows = {(row["metric"], row["explainer"]): row for row in summary.to_pylist()}
    wanted = ranked(manifest) if columns is None else columns
    told = [name for name in wanted if any(metric == name for metric, _ in rows)]
    there = {name: manifest.explainers[name] for _, name in rows if name in manifest.explainers}
    names = [name for name in manifest.explainers if name in there]
    controls = [name for name in names if is_control(name, there[name])]
    others = [name for name in names if name not in controls]
    entries = {name: c for entry in manifest.metrics.values() for name, c in entry.columns.items()}
    pairs = {(row["metric"], row["explainer"], row["against"]): row for row in comparisons.to_pylist()}
    spent = {row["explainer"]: row["milliseconds"] for row in costs.to_pylist()}
    made, cells = {}, {}
    for name in told:
        own = {each: rows[name, each] for each in names if (name, each) in rows}
        made[name] = _column(entries[name], own, controls, _references(name, manifest, rows, names))
        cells[name] = _cells(entries[name], own, controls, pairs)

    def row(name: str) -> Row:
        return Row(name, {c: cells[c][name] for c in told if name in cells[c]}, spent.get(name))

    standings = _standings({key: each["rank"] for key, each in rows.items()}, manifest, others)
    return Leaderboard(
        made,
        [row(name) for name in sorted(others, key=standings.__getitem__)],
        [row(name) for name in controls],
        max((column.n for column in made.values()), default=0),
        MODALITIES[manifest.modality].plural,
    )


def _standings(
    ranks: Mapping[tuple[str, str], float], manifest: Manifest, explainers: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """What orders explainers in every table: their mean rank in the headline columns, the lowest one first.

    Equal ones follow their mean rank in all ranked columns. An explainer without any rank comes last.

    Parameters
    ----------
    ranks
        The rank by column and explainer, 1 for the best of a column; NaN where there is none.
    """

    def mean(name: str, columns: Sequence[str]) -> float:
        found = [ranks[column, name] for column in columns if (column, name) in ranks]
        known = [rank for rank in found if not math.isnan(rank)]
        return sum(known) / len(known) if known else math.inf

    shown, every = headline(manifest), ranked(manifest)
    return {name: (mean(name, shown), mean(name, every)) for name in explainers}


def _column(
    entry: ColumnEntry,
    rows: Mapping[str, dict[str, Any]],
    controls: Sequence[str],
    references: Mapping[str, float],
) -> BoardColumn:
    """One column, from its rows of the summary by explainer."""
    ranks = {name: rows[name]["rank"] for name in controls if name in rows}
    known = [name for name, rank in ranks.items() if not math.isnan(rank)]
    best = min(known, key=ranks.__getitem__, default=None)
    most = max(row["n"] for row in rows.values())
    assert entry.better is not None
    return BoardColumn(entry.name, entry.better, most, best, references, entry.pooled is not None)


def _cells(
    entry: ColumnEntry,
    rows: Mapping[str, dict[str, Any]],
    controls: Sequence[str],
    pairs: Mapping[tuple[str, str, str], dict[str, Any]],
) -> dict[str, Cell]:
    """The cells of one column by explainer, from its rows of the summary by explainer."""
    most = max(row["n"] for row in rows.values())
    rounding = _rounding(entry, rows)
    tests = sum(column == entry.name and not math.isnan(p["p_value"]) for (column, *_), p in pairs.items())
    scored = [name for name in controls if name in rows and rows[name]["n"]]
    return {
        name: Cell(
            row["mean"],
            row["low"],
            row["high"],
            row["n"],
            fewer=row["n"] < most,
            # The difference is that to the best one. It is NaN where there is none.
            best=bool(row["n"]) and (row["best"] or abs(row["difference"]) <= rounding),
            over={}
            if name in controls
            else {c: _over(entry, name, c, pairs, tests, rounding) for c in scored},
            reason=row.get("reason"),  # tables of earlier versions have no such column
        )
        for name, row in rows.items()
    }


def _over(
    entry: ColumnEntry,
    name: str,
    control: str,
    pairs: Mapping[tuple[str, str, str], dict[str, Any]],
    tests: int,
    rounding: float,
) -> bool | None:
    """Whether an explainer is better than a control, as one of some tests; see :class:`Cell`."""
    sign = 1 if entry.better == "higher" else -1
    pair, wins = pairs.get((entry.name, name, control)), None
    if pair is not None:
        wins = pair["wins"]
    elif (pair := pairs.get((entry.name, control, name))) is not None:
        # The best one is compared once with every other one, as the second of the two.
        sign, wins = -sign, 1 - pair["wins"]
    if pair is None or wins is None or math.isnan(pair["p_holm"]):
        return None
    if 2.0 ** (1 - pair["n"]) * tests >= LEVEL:  # the lowest p-value that so many images can give
        return None
    return bool(pair["p_holm"] < LEVEL and sign * pair["difference"] > rounding and wins > 0.5)


def _rounding(entry: ColumnEntry, rows: Mapping[str, dict[str, Any]]) -> float:
    """The largest difference in a column that counts as one of rounding."""
    size = entry.high - entry.low
    if math.isinf(size):  # the numbers themselves say how large numbers are
        size = max((abs(row["mean"]) for row in rows.values() if not math.isnan(row["mean"])), default=0.0)
    return ROUNDING * size


def _references(
    column: str,
    manifest: Manifest,
    rows: Mapping[tuple[str, str], dict[str, Any]],
    names: Sequence[str],
) -> dict[str, float]:
    """The numbers of the reference columns that belong to a ranked column.

    A reference belongs to the ranked column of its metric whose name its own name begins with, the longest
    such name, or to the only ranked one. One that differs between explainers which have the most images is
    no line that all of them can be held against, and is left out.
    """
    own = next(entry.columns for entry in manifest.metrics.values() if column in entry.columns)
    contenders = [name for name, about in own.items() if about.better is not None]
    found = {}
    for name in (name for name, about in own.items() if about.better is None):
        owners = [each for each in contenders if name.startswith(f"{each}_")] or (
            contenders if len(contenders) == 1 else []
        )
        told = [rows[name, each] for each in names if (name, each) in rows]
        most = max((row["n"] for row in told), default=0)
        means = [row["mean"] for row in told if row["n"] == most]
        if not most or max(owners, key=len, default=None) != column:
            continue
        if max(means) - min(means) <= ROUNDING * max(map(abs, means)):
            found[name] = means[0]
    return found
