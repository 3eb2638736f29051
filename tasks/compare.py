"""Several runs side by side: other models, other seeds, other layers, on the images they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.files import replacing
from storage.run import Run
from storage.scores import read_samples, read_values
from tasks.statistics import Contest, rows_of
from tasks.summary import against_controls, contest_of

Key = tuple[str, int]  # sample and which of its targets, from 0: models may explain different classes


@dataclass(frozen=True)
class Compared:
    """What there is to say of several runs.

    Attributes
    ----------
    summary, comparisons
        As :func:`tasks.statistics.rows_of` gives them; an explainer is called RUN/EXPLAINER. Compared are
        each explainer with the best one, with its own run's controls, and with the same explainer of the
        runs before it.
    maps
        How many maps an explainer all runs have in common, which alone count.
    left_out
        Metrics that are not compared, and why.
    """

    summary: pa.Table
    comparisons: pa.Table
    maps: int
    left_out: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``summary.parquet`` and ``comparisons.parquet``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("summary", self.summary), ("comparisons", self.comparisons)):
            with replacing(folder / f"{name}.parquet") as partial:
                pq.write_table(table, partial)


def compare(runs: Sequence[Run]) -> Compared:
    """Compare the explainers of complete runs, on the metrics that they share.

    Raises
    ------
    ValueError
        In one line: a run is not complete or named twice, or the runs share no images or no metric.
    """
    for run in runs:
        if not run.summary.exists():
            raise ValueError(f"{run.root} is not complete; run its job again, then compare")
    names = _names(runs)
    columns, left_out = _shared(runs, names)
    tables = [{name: read_values(run, name) for name in run.explainers} for run in runs]
    keys = [_keys(table) for table in tables]
    common = [key for key in keys[0] if all(key in others for others in keys[1:])]
    if not common:
        raise ValueError(f"{' and '.join(names)} have no image in common; compare runs of one dataset")
    _check_same_images(runs, names, {sample for sample, _ in common})
    rows = [np.array([own[key] for key in common]) for own in keys]
    contests = [
        _joined([contest_of(run, column, table) for run, table in zip(runs, tables, strict=True)], rows)
        for column in columns
    ]
    contenders = [
        f"{name}/{explainer}" for name, run in zip(names, runs, strict=True) for explainer in run.explainers
    ]
    ahead, compared = rows_of(contests, contenders, _pairs(runs), runs[0].seed)
    return Compared(pa.Table.from_pylist(ahead), pa.Table.from_pylist(compared), len(common), left_out)


def _names(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: by their jobs, or by their folders where jobs share a name."""
    for names in (
        [run.job["name"] for run in runs],
        [run.root.name for run in runs],
        [str(run.root) for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    twice = next(root for root, count in Counter(run.root for run in runs).items() if count > 1)
    raise ValueError(f"{twice} is named twice; name every run once")


def _shared(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The columns that all runs have from the same metric with the same settings, and what is left out."""
    left_out: dict[str, str] = {}
    told = [_settings(run) for run in runs]
    for settings, name in zip(told, names, strict=True):
        for other in told:
            left_out |= {column: f"{name} has it not" for column in other if column not in settings}
    first = told[0]
    for settings, name in zip(told[1:], names[1:], strict=True):
        for column in first:
            if column not in left_out and settings[column] != first[column]:
                left_out[column] = f"{name} has other settings than {names[0]}"
    shared = [column for column in first if column not in left_out]
    if not shared:
        why = "; ".join(f"{column}: {reason}" for column, reason in list(left_out.items())[:3])
        raise ValueError(f"{' and '.join(names)} share no metric: {why}")
    return shared, left_out


def _settings(run: Run) -> dict[str, Any]:
    """Of every column: the metric it is from, the metric's parameters, and what it says of itself."""
    return {
        column: (name, entry["parameters"], about)
        for name, entry in run.metrics.items()
        for column, about in entry["columns"].items()
    }


def _keys(tables: dict[str, pa.Table]) -> dict[Key, int]:
    """The row of every map among those of a metric, which are the same for all metrics and explainers."""
    table = next(iter(tables.values()))
    first = table["metric"][0].as_py()
    samples = table.filter(pc.equal(table["metric"], first))["sample_id"].to_pylist()
    seen: Counter[str] = Counter()
    keys = {}
    for row, sample in enumerate(samples):
        keys[sample, seen[sample]] = row
        seen[sample] += 1
    return keys


def _check_same_images(runs: Sequence[Run], names: Sequence[str], common: set[str]) -> None:
    """Refuse samples that share a name alone, as the demo's do that were drawn by another seed."""
    if len({run.manifest.dataset_fingerprint for run in runs}) == 1:
        return
    facts: dict[str, Any] = {}
    for run, name in zip(runs, names, strict=True):
        for sample in read_samples(run.root):
            own = [sample[key] for key in ("label", "width", "height", "text")]
            if sample["sample_id"] in common and facts.setdefault(sample["sample_id"], own) != own:
                raise ValueError(
                    f"{name} has another image {sample['sample_id']} than {names[0]}; compare runs of one "
                    "dataset"
                )


def _joined(contests: Sequence[Contest], rows: Sequence[np.ndarray]) -> Contest:
    """One contest of all contenders, on the given rows of each."""
    values = np.concatenate([own.values[:, chosen] for own, chosen in zip(contests, rows, strict=True)])
    curves = [curve[chosen] for own, chosen in zip(contests, rows, strict=True) for curve in own.curves]
    return replace(contests[0], values=values, curves=curves)


def _pairs(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Positions of pairs that are compared besides those with the best."""
    found: list[tuple[int, int]] = []
    where: list[dict[str, int]] = []
    for run in runs:
        first = sum(len(own) for own in where)
        found += [(first + one, first + other) for one, other in against_controls(run)]
        own = {name: first + i for i, name in enumerate(run.explainers)}
        found += [
            (place, earlier[name]) for earlier in where for name, place in own.items() if name in earlier
        ]
        where.append(own)
    return found
