"""A run with made-up results, for tests of what is computed and drawn from the store of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.manifest import ColumnEntry, ExplainerEntry, Manifest, MetricEntry
from storage.run import Run
from storage.scores import write_scores

NASTY = '<b>&"x ☃ {{1}}'  # the name of a column of a plug-in, or of a class

# The columns of each metric: their directions, and whether they are pooled.
METRICS: dict[str, dict[str, tuple[str | None, str | None]]] = {
    "insertion": {"insertion": ("higher", None)},
    "deletion": {"deletion": ("lower", None)},
    "sparseness": {"sparseness": ("higher", None)},
    "max_box_accuracy": {"max_box_acc_v2": ("higher", "curve"), "max_box_acc_v2_center": (None, "curve")},
    "pixel_precision": {"pxap": ("higher", "curve")},
    "elsewhere:Metric": {NASTY: ("lower", None)},
}
PARAMETERS = {"max_box_accuracy": {"thresholds": 4}, "pixel_precision": {"bins": 5}}
POINTS = {
    "insertion": 5,
    "deletion": 5,
    "max_box_acc_v2": 12,
    "max_box_acc_v2_center": 12,
    "pxap": 10,
    NASTY: 3,
}
COUNTS = {"pxap"}  # whose points are counts


def made_run(
    root: Path,
    explainers: dict[str, str | None],
    *,
    images: int = 10,
    targets: int = 1,
    metrics: dict[str, dict[str, tuple[str | None, str | None]]] = METRICS,
    **manifest: Any,
) -> Run:
    """Create a run without results, of shards of 4 images.

    Parameters
    ----------
    explainers
        The name of each explainer of the run, and its own name where that is a label.
    manifest
        More fields of the manifest.
    """
    columns = {
        metric: {
            name: ColumnEntry(name=name, low=0, high=1, better=better, pooled=pooled)
            for name, (better, pooled) in own.items()
        }
        for metric, own in metrics.items()
    }
    shape = manifest.setdefault("input_shape", (3, 8, 8))
    given: dict[str, Any] = {
        "job": {"name": "made", "seed": 0, "target": {"top": targets} if targets > 1 else "predicted"},
        "identity": {},
        "versions": {},
        "model_fingerprint": "",
        "dataset_fingerprint": "",
        "rows": images,
        "shard_rows": 4,
        "targets_per_image": targets,
        "explainers": {
            name: ExplainerEntry(parameters={}, grid=(2,) * len(shape[1:]), name=own)
            for name, own in explainers.items()
        },
        "metrics": {
            name: MetricEntry(parameters=PARAMETERS.get(name, {}), columns=own)
            for name, own in columns.items()
        },
    }
    return Run.create_or_open(root, Manifest(**given | manifest))


Scored = dict[str, tuple[NDArray[Any], NDArray[Any] | None]]


def made_scores(run: Run, seed: int = 0) -> dict[str, Scored]:
    """Write random scores, of which some are missing; return the values and curves by explainer and column.

    The values are (maps,) and the curves (maps, points); both are NaN where they are missing.
    """
    rng, maps, found = np.random.default_rng(seed), run.rows * run.targets_per_image, {}
    for e, explainer in enumerate(run.explainers):
        own: Scored = {}
        for column, about in run.columns.items():
            missing = rng.random(maps) < 0.2
            values = np.clip(rng.normal(0.2 + 0.6 * e / len(run.explainers), 0.15, maps), 0, 1)
            values[missing | np.full(maps, about.pooled is not None)] = np.nan
            curves = None
            if column in POINTS:
                shape = maps, POINTS[column]
                made = rng.integers(0, 40, shape) if column in COUNTS else rng.random(shape)
                curves = made.astype(np.float32)
                curves[missing] = np.nan
            own[column] = values, curves
        for shard in range(run.shards):
            _write(run, explainer, shard, own)
        found[explainer] = own
    return found


def _write(run: Run, explainer: str, shard: int, own: Scored) -> None:
    start, stop = run.rows_of(shard)
    tidy: dict[str, list[Any]] = {"sample_id": [], "target": [], "metric": [], "value": [], "curve": []}
    for column, (values, curves) in own.items():
        part = values[start:stop]
        tidy["sample_id"] += [f"{row // run.targets_per_image:04d}" for row in range(start, stop)]
        tidy["target"] += [target_of(row) for row in range(start, stop)]
        tidy["metric"] += [column] * len(part)
        tidy["value"] += [None if np.isnan(value) else float(value) for value in part]
        tidy["curve"] += [
            None if curves is None or np.isnan(curves[row, 0]) else curves[row] for row in range(start, stop)
        ]
    rows = len(tidy["metric"])
    tidy |= {"status": ["ok"] * rows, "forward_passes": [None] * rows}
    write_scores(run.root, explainer, shard, tidy)


def target_of(row: int) -> int:
    """The explained class of a map of a made run."""
    return row % 3
