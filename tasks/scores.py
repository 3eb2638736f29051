"""Stage 4: every metric on one explainer's maps of one shard, one Parquet row per image and number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from explainers.base import Status
from explainers.models.black_box import BlackBox
from explainers.probes.masked_forward import target_probability
from storage.maps import read
from storage.records import Step
from storage.run import Run
from storage.scores import read_samples_of_shard, write_scores
from tasks.explain_again import Again
from tasks.metrics.base import Metric, MetricBatch, Need, Scores
from tasks.metrics.preparation import prepare
from tasks.metrics.registry import metrics
from tasks.perform import Outcome, classifier_of, perform
from tasks.prefetch import ahead
from tasks.saliency import STATUSES, batches, targets_and_seeds
from tasks.shard_reader import Images


@task(name="scores", cache_policy=NO_CACHE)
def scores(root: str, shard: int, explainer: str, halve: bool = False) -> dict[str, Any]:
    """Write one shard's score file of an explainer, all metrics of the run in it.

    Their forward passes are computed as the run's ``[compute]`` says, like those of the explainers.
    """
    return perform(
        root,
        Step("scores", shard, explainer),
        lambda run: _score(run, shard, explainer),
        is_done=lambda record: set(record["metrics"]) >= set(Run.open(root).manifest.metrics),
        halve=halve,
    )


def metric_of(run: Run, name: str, classifier: BlackBox) -> Metric:
    """The run's metric of that name, with the parameters the run was created with."""
    cls = metrics.get(name)
    made: Metric = cls(classifier, cls.Parameters(**run.metrics[name]["parameters"]))
    return made


def _score(run: Run, shard: int, explainer: str) -> Outcome:
    classifier = classifier_of(run)
    chosen = [metric_of(run, name, classifier) for name in run.metrics]
    again = any(Need.EXPLAINER in metric.needs for metric in chosen)
    targets, seeds = targets_and_seeds(run, shard, "scores")
    own_seeds = targets_and_seeds(run, shard, "saliency")[1] if again else seeds
    samples = read_samples_of_shard(run.root, shard)
    confidences = _confidences(run, samples)
    start, stop = run.rows_of(shard)
    maps = read(run.saliency(explainer) / "maps", start, stop)
    statuses = [STATUSES[code].value for code in read(run.saliency(explainer) / "status", start, stop)]
    values = {column.name: np.full(stop - start, np.nan) for metric in chosen for column in metric.columns()}
    curves: dict[str, list[np.ndarray | None]] = {name: [None] * (stop - start) for name in values}

    blocks = {"inputs": Images(run, run.inputs, shard)}
    if run.manifest.masks:
        blocks["masks"] = Images(run, run.masks, shard)
    each = {"maps": maps, "targets": targets, "seeds": seeds, "own_seeds": own_seeds}
    if confidences is not None:
        each["confidence"] = confidences

    def read_batch(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        images = rows // run.targets_per_image
        stored = {name: block.of(images) for name, block in blocks.items()}
        return stored | {name: values[rows] for name, values in each.items()}

    for rows, stored in ahead(batches(run, targets), read_batch, classifier.device):
        batch = _batch(run, classifier, stored, [samples[row // run.targets_per_image] for row in rows])
        if again:
            its = stored["own_seeds"]
            batch = replace(batch, explain=Again(run, explainer, classifier, batch.targets, its))
        sites = classifier.sites(batch.inputs)
        prepared, as_read = prepare(stored["maps"], run.input_size, sites)
        for row, status in zip(rows, as_read, strict=True):
            if statuses[row] != Status.FAILED:  # a failed map is not merely "not finite"
                statuses[row] = status.value
        for metric in chosen:
            _put(metric.score(batch, prepared), rows, values, curves)
    ids = [sample["sample_id"] for sample in samples for _ in range(run.targets_per_image)]
    passes = _forward_passes(run, explainer, start, stop)
    part = write_scores(run.root, explainer, shard, _tidy(ids, targets, statuses, values, curves, passes))
    return Outcome(stop - start, statuses, [part], {"metrics": list(run.metrics)})


def _confidences(run: Run, samples: list[dict[str, Any]]) -> NDArray[np.float32] | None:
    """(maps,) probability of each map's target on its whole input, NaN where an input has none.

    None in runs of older versions, which did not keep it.
    """
    if any(sample["probabilities"] is None for sample in samples):
        return None
    each = [sample["probabilities"] or [np.nan] * run.targets_per_image for sample in samples]
    return np.array(each, np.float32).reshape(-1)


def _forward_passes(run: Run, explainer: str, start: int, stop: int) -> list[int | None]:
    """What each map took, where the explainer counts it."""
    if "forward_passes" not in run.explainers[explainer]["details"]:
        return [None] * (stop - start)
    passes: list[int | None] = read(run.saliency(explainer) / "details/forward_passes", start, stop).tolist()
    return passes


def _put(
    scored: Scores,
    rows: np.ndarray,
    values: dict[str, np.ndarray],
    curves: dict[str, list[np.ndarray | None]],
) -> None:
    for name, value in scored.values.items():
        values[name][rows] = value.double().cpu().numpy()
    for name, curve in scored.curves.items():
        for row, points in zip(rows, curve.float().cpu().numpy(), strict=True):
            curves[name][row] = None if np.isnan(points).any() else points


def _tidy(
    ids: list[str],
    targets: np.ndarray,
    statuses: list[str],
    values: dict[str, np.ndarray],
    curves: dict[str, list[np.ndarray | None]],
    passes: list[int | None],
) -> dict[str, list[Any]]:
    """One row per map and number; what is undefined is null."""
    names = list(values)
    return {
        "sample_id": ids * len(names),
        "target": [None if target < 0 else int(target) for target in targets] * len(names),
        "metric": [name for name in names for _ in ids],
        "value": [None if np.isnan(v) else float(v) for name in names for v in values[name]],
        "curve": [curve for name in names for curve in curves[name]],
        "status": statuses * len(names),
        "forward_passes": passes * len(names),
    }


@torch.no_grad()
def _batch(
    run: Run, classifier: BlackBox, stored: dict[str, Tensor], samples: list[dict[str, Any]]
) -> MetricBatch:
    """What metrics see of some maps; ``samples`` are those of their images."""
    inputs, targets = classifier.inputs_of(stored["inputs"]), stored["targets"]
    confidence = stored.get("confidence")
    return MetricBatch(
        inputs=inputs,
        targets=targets,
        seeds=stored["seeds"],
        confidence=target_probability(classifier.logits(inputs), targets)
        if confidence is None
        else confidence,
        # On the host: metrics put those of a whole batch together before they go anywhere.
        boxes=[torch.tensor(sample["boxes"], dtype=torch.float32).reshape(-1, 4) for sample in samples],
        forwards=run.batch_forwards,
        masks=stored["masks"].bool() if run.manifest.masks else None,
    )
