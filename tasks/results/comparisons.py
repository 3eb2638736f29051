"""Compares several runs, for example of other models, seeds or layers, on their common images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.parquet import read_table, write_table
from storage.run import Run
from storage.scores import read_values, with_curve
from storage.verify import check_results
from tasks.metrics.registry import metrics
from tasks.results.same_images import check_same_images, names_of
from tasks.results.statistics import Floats, PairedScores, result_rows
from tasks.results.summary import COMPARISONS, control_pairs, paired_scores, pooled_columns


@dataclass(frozen=True)
class RunComparison:
    """The result of comparing several runs.

    Attributes
    ----------
    summary, comparisons
        The two tables of :func:`tasks.results.statistics.result_rows`, in which explainers are called
        RUN/EXPLAINER. Each explainer is compared with the best one, with the controls of its own run, and
        with the same explainer of the runs before it.
    images
        How many images all runs have in common. Only these images count.
    left_out
        The columns of metrics that are not compared, and the reason for each.
    """

    summary: pa.Table
    comparisons: pa.Table
    images: int
    left_out: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``summary.parquet`` and ``comparisons.parquet`` to a folder."""
        for name, table in (("summary", self.summary), ("comparisons", self.comparisons)):
            write_table(table, folder / f"{name}.parquet")


def compare(runs: Sequence[Run]) -> RunComparison:
    """Compare the explainers of complete runs, on the metrics that they share.

    Raises
    ------
    ValueError
        In one line: a run is not complete or is named twice, or the runs have different targets, no common
        images or no common metric.
    """
    names = names_of(runs)
    for run in runs:
        check_complete(run, "compare")
    targets = [run.target for run in runs]
    if any(target != targets[0] for target in targets):
        raise ValueError(f"{' and '.join(names)} have different targets: {', '.join(map(str, targets))}")
    columns, left_out = _shared(runs, names)
    tables = [{name: read_values(run, name) for name in run.explainers} for run in runs]
    indices = [_image_indices(run, table) for run, table in zip(runs, tables, strict=True)]
    common = [sample for sample in indices[0] if all(sample in others for others in indices[1:])]
    if not common:
        raise ValueError(f"{' and '.join(names)} have no image in common; compare runs of one dataset")
    check_same_images(runs, names, set(common))
    rows = [np.array([own[sample] for sample in common]) for own in indices]
    curved = [{name: with_curve(run, name, pooled_columns(run)) for name in run.explainers} for run in runs]
    scores = [
        _joined([paired_scores(*own, column) for own in zip(runs, tables, curved, strict=True)], rows)
        for column in columns
    ]
    contenders = [f"{name}/{own}" for name, run in zip(names, runs, strict=True) for own in run.explainers]
    summary, compared = result_rows(scores, contenders, _pairs(runs), runs[0].seed)
    comparisons = pa.Table.from_pylist(compared, COMPARISONS)
    return RunComparison(pa.Table.from_pylist(summary), comparisons, len(common), left_out)


def check_complete(run: Run, then: str) -> None:
    """Refuse a run whose summary lacks an explainer or a metric, as it does after the job was extended."""
    check_results(run.root)
    told = read_table(run.summary, ["metric", "explainer"]).to_pylist() if run.summary.exists() else []
    there = {(row["metric"], row["explainer"]) for row in told}
    if there < {(column, name) for column in run.columns for name in run.explainers}:
        raise ValueError(f"{run.root} is not complete; run its job again, then {then}")


def _shared(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The columns that all runs have with the same settings, and why the others are left out."""
    left_out: dict[str, str] = {}
    told = [_settings(run) for run in runs]
    for settings, name in zip(told, names, strict=True):
        for other in told:
            left_out |= {column: f"{name} does not have it" for column in other if column not in settings}
    for run, settings, name in zip(runs[1:], told[1:], names[1:], strict=True):
        for column in told[0].keys() - left_out.keys():
            if settings[column] != told[0][column]:
                left_out[column] = f"its settings in {name} and {names[0]} differ"
            elif _another_scale(runs[0], run, column):
                left_out[column] = f"its values in {name} and {names[0]} are on different scales"
    left_out |= _of_plug_ins(runs)
    shared = [column for column in told[0] if column not in left_out]
    if not shared:
        why = "; ".join(f"{column}: {reason}" for column, reason in list(left_out.items())[:3])
        raise ValueError(f"{' and '.join(names)} share no metric: {why}")
    return shared, left_out


def _of_plug_ins(runs: Sequence[Run]) -> dict[str, str]:
    """The pooled columns of plug-ins, and why they are left out."""
    # The number of a pooled column is made by the metric's code. A run folder may come from anybody, so code
    # that it names is not run to look at it.
    return {
        column: f"its metric {name} is a plug-in, whose code would have to run"
        for run in runs
        for name, entry in run.metrics.items()
        for column in pooled_columns(run) & entry.columns.keys()
        if ":" in name
    }


def _settings(run: Run) -> dict[str, Any]:
    """The settings of every column: metric, parameters of the metric, direction, range and fill."""
    return {
        column: (
            name,
            entry.parameters if ":" in name else metrics.get(name).Parameters(**entry.parameters),
            [about.better, about.low, about.high, about.fill],
        )
        for name, entry in run.metrics.items()
        for column, about in entry.columns.items()
    }


def _another_scale(one: Run, other: Run, column: str) -> bool:
    """Whether the numbers of a column depend on something in which the two runs differ."""
    differ: dict[str | None, bool] = {
        "classifier": one.model_fingerprint != other.model_fingerprint,
        "size": one.input_size != other.input_size,
    }
    return differ.get(one.columns[column].within, False)


def _image_indices(run: Run, tables: dict[str, pa.Table]) -> dict[str, int]:
    """The index of every image by sample id; it is the same for all metrics and explainers."""
    table = next(iter(tables.values()))
    first = table["metric"][0].as_py()
    samples = table.filter(pc.equal(table["metric"], first))["sample_id"].to_pylist()
    return {sample: image for image, sample in enumerate(samples[:: run.targets_per_image])}


def _joined(scores: Sequence[PairedScores], rows: Sequence[np.ndarray]) -> PairedScores:
    """The scores of all runs in one, on the given ``rows`` of images of each run."""
    known = np.concatenate([own.known[:, chosen] for own, chosen in zip(scores, rows, strict=True)])
    if scores[0].pool is not None:
        owners = [(run, e) for run, own in enumerate(scores) for e in range(len(own.known))]

        def curves(contender: int) -> Floats:
            run, e = owners[contender]
            of_run = scores[run].curves
            assert of_run is not None
            return of_run(e)[rows[run]]

        return replace(scores[0], known=known, values=np.empty((len(known), 0)), curves=curves)
    values = np.concatenate([own.values[:, chosen] for own, chosen in zip(scores, rows, strict=True)])
    return replace(scores[0], known=known, values=values)


def _pairs(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Pairs of contenders, by index, that are compared in addition to those with the best one."""
    found: list[tuple[int, int]] = []
    where: list[dict[str, int]] = []
    for run in runs:
        first = sum(len(own) for own in where)
        found += [(first + one, first + other) for one, other in control_pairs(run)]
        own = {name: first + i for i, name in enumerate(run.explainers)}
        found += [
            (place, earlier[name]) for earlier in where for name, place in own.items() if name in earlier
        ]
        where.append(own)
    return found
