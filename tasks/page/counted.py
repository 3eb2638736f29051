"""What became of the maps and scores that are not good ones: how many, why, and which samples they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from explainers.statuses import STATUSES as CODES
from explainers.statuses import Status
from storage.characters import shown
from storage.run import Run
from storage.samples import read_columns_of_shard
from storage.scores import read_numbers
from tasks.page.choice import statuses_of
from tasks.results.leaderboard import is_control
from tasks.results.remarks import STATUSES, why_zero
from tasks.results.verdict import listed

_NAMED = 6  # samples


@dataclass(frozen=True)
class Counted:
    """Maps that have something in common.

    Attributes
    ----------
    told
        What became of them, and how many they are, in words.
    samples
        Some of their samples, those of the gallery first: the name, and the key in the page or an empty text.
    more
        How many samples are not named.
    """

    told: str
    samples: list[tuple[str, str]]
    more: int


def counted_maps(
    run: Run, statuses: Mapping[str, Counter[str]], shown_rows: Collection[int]
) -> list[Counted]:
    """Count the maps of each explainer that are not good, by what is wrong with them.

    Parameters
    ----------
    statuses
        By explainer, the number of its maps by status.
    shown_rows
        The samples of the gallery, by their row in the run.
    """
    found, done = [], run.finished()
    for name, counts in statuses.items():
        unusual = {status: count for status, count in counts.items() if status != Status.OK and count}
        codes = statuses_of(run, name, done) if unusual else np.empty(0, np.int8)
        for status in (each for each in STATUSES if each in unusual):
            why = why_zero(run.explainers[name]) if status == Status.ALL_ZERO else ""
            told = f"{shown(name)}: {counts[status]:,} of {counts.total():,} maps {STATUSES[status]}{why}"
            rows = np.flatnonzero(codes == CODES.index(Status(status))) // run.targets_per_image
            if is_control(name, run.explainers[name]) and counts[status] == counts.total():
                rows = rows[:0]  # a control that has one map for all inputs
            found.append(_counted(run, told, np.unique(rows), shown_rows))
    return found


def counted_scores(run: Run, summary: pa.Table, shown_rows: Collection[int]) -> list[Counted]:
    """Count the maps without a score in metrics that have one of other maps, by the status of the maps.

    Metrics that lose the same maps of the same explainers are told together. Why a metric has no score at all
    is a remark on the run.

    Parameters
    ----------
    summary
        The table ``summary.parquet``.
    shown_rows
        The samples of the gallery, by their row in the run.
    """
    lost: dict[tuple[str, str, int], list[str]] = {}
    for row in summary.to_pylist():
        if row["n"] and row["better"]:
            for status, count in (row["excluded_by"] or {}).items():
                if count:
                    lost.setdefault((row["metric"], status, count), []).append(row["explainer"])
    groups: dict[tuple[tuple[str, ...], str, int], list[str]] = {}
    for (metric, status, count), names in lost.items():
        groups.setdefault((tuple(names), status, count), []).append(metric)
    done = run.finished()
    return [
        _unscored(run, list(names), status, count, metrics, done, shown_rows)
        for (names, status, count), metrics in groups.items()
    ]


def _unscored(
    run: Run,
    names: list[str],
    status: str,
    count: int,
    metrics: list[str],
    done: Any,
    shown_rows: Collection[int],
) -> Counted:
    codes = statuses_of(run, names[0], done)
    values = read_numbers(run, names[0], {metrics[0]})[metrics[0]]
    lost = np.isnan(values) & (codes == CODES.index(Status(status)))
    one, several = count == 1, len(names) > 1
    of = "every explainer" if len(names) == len(run.explainers) else listed([*map(shown, names)])
    each = "each of " if several and len(names) < len(run.explainers) else ""
    why = "good, but here the metric is undefined" if status == Status.OK else STATUSES[status]
    told = f"{listed([*map(shown, metrics)])}: no score for {count:,} map{'' if one else 's'} of {each}{of}, "
    told += f"which {'is' if one else 'are'} {why}{f'; of {shown(names[0])} ' * several}".rstrip()
    return _counted(run, told, np.unique(np.flatnonzero(lost) // run.targets_per_image), shown_rows)


def _counted(run: Run, told: str, rows: NDArray[np.int64], shown_rows: Collection[int]) -> Counted:
    there = [row for row in rows.tolist() if row in shown_rows]
    named = [*there, *(row for row in rows[:_NAMED].tolist() if row not in shown_rows)][:_NAMED]
    ids = _ids(run, named)
    samples = [(ids[row], f"sample-{row}" if row in shown_rows else "") for row in named]
    return Counted(told, samples, len(rows) - len(named) if named else 0)


def _ids(run: Run, rows: list[int]) -> dict[int, str]:
    """The ids of samples by their row in the run; the table of each shard is read once."""
    size = run.manifest.shard_rows
    tables = {
        shard: read_columns_of_shard(run.root, shard, ["sample_id"])["sample_id"]
        for shard in {row // size for row in rows}
    }
    return {row: shown(tables[row // size][row % size].as_py()) for row in rows}
