"""Lines of text about a run that its numbers alone do not show, for the terminal and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from storage.datasets.notes import lines
from storage.manifest import ExplainerEntry
from storage.records import DoneRecord
from storage.run import Run
from storage.samples import each_sample

# What each status of a map means.
STATUSES = {
    "ok": "good",
    "all_zero": "zero everywhere",
    "constant": "constant",
    "not_finite": "with NaN or infinity",
    "failed": "failed",
    "no_label": "without such a label",
}
_UNUSUAL = ("failed", "not_finite", "all_zero")


def unscored(summary: pa.Table) -> list[str]:
    """Return one line per reason why metrics have no value, with the metrics and the explainers."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in summary.to_pylist():
        if row["reason"] is not None:
            metrics, explainers = found.setdefault(row["reason"], ({}, {}))
            metrics[row["metric"]] = explainers[row["explainer"]] = None
    every = len(set(summary["explainer"].to_pylist()))
    return [
        f"n = 0 for {', '.join(metrics)}"
        + (f" of {', '.join(explainers)}" if len(explainers) < every else "")
        + f": {reason}"
        for reason, (metrics, explainers) in found.items()
    ]


def why_zero(entry: ExplainerEntry) -> str:
    """Return in brackets why maps of an explainer are zero everywhere, if that is known."""
    # A map of DD-CAM is the sum of the units that it keeps.
    empty = "no unit is kept: without any of them the network's answer is already the class"
    return f" ({empty})" if "unit_mask" in entry.details else ""


def unusual_maps(run: Run, records: Sequence[DoneRecord]) -> list[str]:
    """Return one line per explainer with maps that failed, hold NaN or infinity, or are zero everywhere.

    Maps of images that failed themselves are not counted.

    Parameters
    ----------
    records
        All done-records of the run.
    """
    of_images = (record for record in records if record.step.stage == "activations")
    unusable = {record.step.shard: record.statuses.get("failed", 0) for record in of_images}
    counts = {name: Counter[str]() for name in run.explainers}
    for record in (record for record in records if record.step.stage == "saliency"):
        found = counts[record.step.explainer]
        found.update(record.statuses)
        unread = run.targets_per_image * unusable.get(record.step.shard, 0)
        found["failed"] -= min(unread, record.statuses.get("failed", 0))
    lines = []
    for name, found in counts.items():
        told = ", ".join(f"{found[status]:,} {STATUSES[status]}" for status in _UNUSUAL if found[status])
        if found["all_zero"]:
            told += why_zero(run.explainers[name])
        if told:
            lines.append(f"{name}: of {found.total():,} maps of readable images {told}")
    return lines


def notes_of(run: Run, records: Sequence[DoneRecord]) -> list[str]:
    """Return the lines on what was done to the dataset's images, and on maps that were given or are unusual.

    Parameters
    ----------
    records
        As for :func:`unusual_maps`.
    """
    samples = each_sample(run.root, ["uri", "notes"]) if run.samples.exists() else ()
    given = [f"{name}: {entry.given}" for name, entry in run.explainers.items() if entry.given]
    return [*lines(samples, run.manifest.left_out), *given, *unusual_maps(run, records)]


def beside_float32(costs: pa.Table) -> list[str]:
    """Return a line on how far maps in lower precision are from those in float32; none without any.

    Parameters
    ----------
    costs
        The table ``costs.parquet``.
    """
    known = [row for row in costs.to_pylist() if row["rank_correlation"] is not None]
    if not known:
        return []
    told = [
        f"{min(row[key] for row in known):.4f} ({min(known, key=lambda row: row[key])['explainer']})"
        for key in ("rank_correlation", "worst_rank_correlation")
    ]
    return [
        f"rank correlation of maps with those in float32: lowest mean {told[0]}, lowest of a map {told[1]}"
    ]


def layer_of(run: Run) -> str:
    """Name the target layer of a run, or several, and say how it was chosen if the job names none."""
    layers = run.layer if isinstance(run.layer, tuple) else (run.layer,)
    names = ", ".join(layer for layer in layers if layer is not None)
    choice = run.manifest.layer_choice
    return f"{names} ({choice})" if choice else names
