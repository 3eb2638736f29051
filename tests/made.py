"""A run with made-up results, for tests of what is computed and drawn from the store of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage.manifest import ColumnEntry, ExplainerEntry, Manifest, MetricEntry
from storage.maps import write_shard
from storage.records import Step, write_record
from storage.run import Run
from storage.samples import merge_samples, write_sample_inputs, write_sample_predictions
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
    grids: dict[str, tuple[int, ...]] | None = None,
    **manifest: Any,
) -> Run:
    """Create a run without results, of shards of 4 images.

    Parameters
    ----------
    explainers
        The name of each explainer of the run, and its own name where that is a label.
    grids
        The grids of their maps; two cells per side by default.
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
    target = {"top": targets} if targets > 1 else "predicted"
    batch = {"images": 4, "forwards": 4}
    shape = manifest.setdefault("input_shape", (3, 8, 8))
    given: dict[str, Any] = {
        "job": {"name": "made", "seed": 0, "target": target, "tolerance": 0.0, "batch": batch},
        "identity": {},
        "versions": {},
        "model_fingerprint": "",
        "dataset_fingerprint": "",
        "rows": images,
        "shard_rows": 4,
        "targets_per_image": targets,
        "explainers": {
            name: ExplainerEntry(parameters={}, grid=(grids or {}).get(name, (2,) * len(shape[1:])), name=own)
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


def made_maps(run: Run, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write random maps with values of both signs, with their records; return them by explainer."""
    rng, found = np.random.default_rng(seed), {}
    for explainer, entry in run.explainers.items():
        maps = rng.normal(0.3, 1, (run.rows * run.targets_per_image, *entry.grid)).astype(np.float32)
        for shard in range(run.shards):
            start, stop = run.rows_of(shard)
            files = write_shard(run.saliency(explainer) / "maps", start, maps[start:stop])
            step = Step("saliency", shard, explainer)
            write_record(
                run.root, step, rows=stop - start, statuses={}, files=files, seconds=0, worker="", facts=None
            )
        found[explainer] = torch.from_numpy(maps)
    return found


def made_samples(
    run: Run, classes: list[int] | None = None, names: dict[int, str] | None = None
) -> NDArray[np.int64]:
    """Write the samples of a run; return the explained class of each map, (maps,).

    Parameters
    ----------
    classes
        The explained class of each map; -1: the image has none. Those of :func:`target_of` by default.
    names
        The names that the model has for classes. The dataset's names are "label 0" and so on.
    """
    k = run.targets_per_image
    found = np.array(classes or [target_of(row) for row in range(run.rows * k)])
    for shard in range(run.shards):
        inputs, predictions = [], []
        for image in range(*run.bounds(shard)):
            own = [int(c) for c in found[image * k : image * k + k] if c >= 0]
            fact = {"sample_id": f"{image:04d}"}
            inputs.append(fact | ({"label": own[0]} if own else {}) | {"status": "ok"})
            target = {"target": own[0], "targets": own, "label_name": f"label {own[0]}"} if own else {}
            called = {"target_names": [names.get(c) for c in own]} if names and own else {}
            predictions.append(fact | target | called)
        write_sample_inputs(run.root, shard, inputs)
        write_sample_predictions(run.root, shard, predictions)
    merge_samples(run.root, run.shards)
    return found
