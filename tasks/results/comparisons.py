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

from storage.run import Run
from storage.scores import read_samples, read_table, read_values, with_curve, write_table
from tasks.metrics.registry import metrics
from tasks.results.statistics import Contest, Floats, rows_of
from tasks.results.summary import COMPARISONS, against_controls, contest_of, pooled_columns

_ABOUT = ("better", "low", "high", "fill")


@dataclass(frozen=True)
class Compared:
    """What there is to say of several runs.

    Attributes
    ----------
    summary, comparisons
        As :func:`tasks.results.statistics.rows_of` gives them; an explainer is called RUN/EXPLAINER. Compared
        are each explainer with the best one, with its own run's controls, and with the same explainer of the
        runs before it.
    images
        How many images all runs have in common, which alone count.
    left_out
        Metrics that are not compared, and why.
    """

    summary: pa.Table
    comparisons: pa.Table
    images: int
    left_out: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``summary.parquet`` and ``comparisons.parquet``."""
        for name, table in (("summary", self.summary), ("comparisons", self.comparisons)):
            write_table(table, folder / f"{name}.parquet")


def compare(runs: Sequence[Run]) -> Compared:
    """Compare the explainers of complete runs, on the metrics that they share.

    Raises
    ------
    ValueError
        In one line: a run is not complete or named twice, or the runs explain other classes, or share no
        images or no metric.
    """
    names = _names(runs)
    for run in runs:
        _check_complete(run)
    targets = [run.job["target"] for run in runs]
    if any(target != targets[0] for target in targets):
        raise ValueError(f"{' and '.join(names)} explain other targets: {', '.join(map(str, targets))}")
    columns, left_out = _shared(runs, names)
    tables = [{name: read_values(run, name) for name in run.explainers} for run in runs]
    places = [_places(run, table) for run, table in zip(runs, tables, strict=True)]
    common = [sample for sample in places[0] if all(sample in others for others in places[1:])]
    if not common:
        raise ValueError(f"{' and '.join(names)} have no image in common; compare runs of one dataset")
    _check_same_images(runs, names, set(common))
    rows = [np.array([own[sample] for sample in common]) for own in places]
    curved = [{name: with_curve(run, name, pooled_columns(run)) for name in run.explainers} for run in runs]
    contests = [
        _joined([contest_of(*own, column) for own in zip(runs, tables, curved, strict=True)], rows)
        for column in columns
    ]
    contenders = [f"{name}/{own}" for name, run in zip(names, runs, strict=True) for own in run.explainers]
    ahead, compared = rows_of(contests, contenders, _pairs(runs), runs[0].seed)
    comparisons = pa.Table.from_pylist(compared, COMPARISONS)
    return Compared(pa.Table.from_pylist(ahead), comparisons, len(common), left_out)


def _check_complete(run: Run) -> None:
    """A run that was extended has to be done again before it is complete."""
    told = read_table(run.summary, ["metric", "explainer"]).to_pylist() if run.summary.exists() else []
    there = {(row["metric"], row["explainer"]) for row in told}
    if there < {(column, name) for column in run.columns for name in run.explainers}:
        raise ValueError(f"{run.root} is not complete; run its job again, then compare")


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
    for run, settings, name in zip(runs[1:], told[1:], names[1:], strict=True):
        for column in told[0].keys() - left_out.keys():
            if settings[column] != told[0][column]:
                left_out[column] = f"{name} has other settings than {names[0]}"
            elif _another_scale(runs[0], run, column):
                left_out[column] = f"its values in {name} and {names[0]} are on different scales"
    shared = [column for column in told[0] if column not in left_out]
    if not shared:
        why = "; ".join(f"{column}: {reason}" for column, reason in list(left_out.items())[:3])
        raise ValueError(f"{' and '.join(names)} share no metric: {why}")
    return shared, left_out


def _settings(run: Run) -> dict[str, Any]:
    """Of every column: the metric it is from, its parameters, and its range, direction and fill."""
    return {
        column: (name, metrics.get(name).Parameters(**entry["parameters"]), [about[key] for key in _ABOUT])
        for name, entry in run.metrics.items()
        for column, about in entry["columns"].items()
    }


def _another_scale(one: Run, other: Run, column: str) -> bool:
    """Whether a column's numbers depend on what is another in the two runs."""
    differ: dict[str | None, bool] = {
        "classifier": one.model_fingerprint != other.model_fingerprint,
        "size": one.input_size != other.input_size,
    }
    return differ.get(one.columns[column].get("within"), False)


def _places(run: Run, tables: dict[str, pa.Table]) -> dict[str, int]:
    """The row of every image, which is the same for all metrics and explainers."""
    table = next(iter(tables.values()))
    first = table["metric"][0].as_py()
    samples = table.filter(pc.equal(table["metric"], first))["sample_id"].to_pylist()
    return {sample: image for image, sample in enumerate(samples[:: run.targets_per_image])}


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
    """One contest of all contenders, on the given images of each."""
    known = np.concatenate([own.known[:, chosen] for own, chosen in zip(contests, rows, strict=True)])
    if contests[0].pool is not None:
        owners = [(run, e) for run, own in enumerate(contests) for e in range(len(own.known))]

        def curves(contender: int) -> Floats:
            run, e = owners[contender]
            of_run = contests[run].curves
            assert of_run is not None
            return of_run(e)[rows[run]]

        return replace(contests[0], known=known, values=np.empty((len(known), 0)), curves=curves)
    values = np.concatenate([own.values[:, chosen] for own, chosen in zip(contests, rows, strict=True)])
    return replace(contests[0], known=known, values=values)


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
