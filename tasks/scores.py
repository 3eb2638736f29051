"""Stage 4: all metrics on the maps of one explainer for one shard, one Parquet row per map and number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from explainers.base import Need as ExplainerNeed
from explainers.models.black_box import BlackBox
from explainers.statuses import STATUSES, Status
from storage.datasets.masks import IGNORED, OBJECT
from storage.maps import read
from storage.records import StageFacts, Step
from storage.run import Run
from storage.samples import read_samples_of_shard
from storage.scores import write_scores
from tasks.metrics.base import MetricBatch, Need, Scores
from tasks.metrics.preparation import prepare
from tasks.objects import boxes_of, masks_of
from tasks.perform import Outcome, perform
from tasks.run_parts import classifier_of, explain_again, explainer_class, explainer_of, metric_of
from tasks.shard_rows import batches, targets_and_seeds


@task(name="scores", cache_policy=NO_CACHE)
def scores(root: str, shard: int, explainer: str, halve: bool = False) -> dict[str, Any]:
    """Write the score file of one shard and explainer, with all metrics of the run.

    The forward passes of metrics follow the run's ``[compute]``, as those of explainers do.

    Parameters
    ----------
    root
        The run folder.
    shard
        Index of the shard, from 0.
    explainer
        The explainer, as the run calls it.
    halve
        Whether to halve the batch sizes, as a retry does.

    Returns
    -------
    dict
        The path of the done-record, the rows and the seconds; see :func:`tasks.perform.perform`.
    """
    return perform(
        root,
        Step("scores", shard, explainer),
        lambda run: _score(run, shard, explainer),
        is_done=lambda record: set(record.facts.metrics or ()) >= set(Run.open(root).metrics),
        halve=halve,
    )


def _score(run: Run, shard: int, explainer: str) -> Outcome:
    classifier = classifier_of(run)
    chosen = [metric_of(run, name, classifier) for name in run.metrics]
    # Maps that another program made cannot be made again: metrics that explain again have no value for them.
    given = ExplainerNeed.GIVEN in explainer_class(run, explainer).needs
    able = [metric for metric in chosen if not (given and Need.EXPLAINER in metric.needs)]
    explains_again = any(Need.EXPLAINER in metric.needs for metric in able)
    made = explainer_of(run, explainer, classifier) if explains_again else None
    targets, seeds = targets_and_seeds(run, shard, "scores")
    # Metrics that explain again need the explainer's own seeds to get the same maps for the same inputs.
    own_seeds = targets_and_seeds(run, shard, "saliency")[1] if explains_again else seeds
    samples = read_samples_of_shard(run.root, shard)
    start, stop = run.rows_of(shard)
    maps = read(run.saliency(explainer) / "maps", start, stop)
    statuses = [STATUSES[code].value for code in read(run.saliency(explainer) / "status", start, stop)]
    values = {column.name: np.full(stop - start, np.nan) for metric in chosen for column in metric.columns()}
    curves: dict[str, list[np.ndarray | None]] = {name: [None] * (stop - start) for name in values}

    arrays = {"inputs": run.inputs} | ({"masks": run.masks} if run.manifest.masks else {})
    each = {"maps": maps, "targets": targets, "seeds": seeds, "own_seeds": own_seeds}
    each["confidence"] = _confidences(run, samples)
    for rows, stored in batches(run, shard, arrays, each, classifier.device):
        batch = _batch(run, classifier, stored, [samples[row // run.targets_per_image] for row in rows])
        if made is not None:
            own = stored["own_seeds"]
            batch = replace(
                batch, explain=explain_again(run, explainer, made, classifier, batch.targets, own)
            )
        sites = classifier.sites(batch.inputs)
        prepared, as_read = prepare(stored["maps"], run.input_size, sites)
        for row, status in zip(rows, as_read, strict=True):
            if statuses[row] != Status.FAILED:  # it is stored as NaN, which would read as "not finite"
                statuses[row] = status.value
        for metric in able:
            _store(metric.score(batch, prepared), rows, values, curves)
    ids = [sample["sample_id"] for sample in samples for _ in range(run.targets_per_image)]
    passes = _forward_passes(run, explainer, start, stop)
    part = write_scores(run.root, explainer, shard, _tidy(ids, targets, statuses, values, curves, passes))
    return Outcome(stop - start, statuses, [part], StageFacts(metrics=tuple(run.metrics)))


def _confidences(run: Run, samples: list[dict[str, Any]]) -> NDArray[np.float32]:
    """The probability of each map's target on the whole input, (maps,); NaN where there is no target."""
    k = run.targets_per_image
    each = [[*sample["probabilities"], *[np.nan] * k][:k] for sample in samples]
    return np.array(each, np.float32).reshape(-1)


def _forward_passes(run: Run, explainer: str, start: int, stop: int) -> list[int | None]:
    """The forward passes that each map took; None if the explainer does not count them."""
    if "forward_passes" not in run.explainers[explainer].details:
        return [None] * (stop - start)
    passes: list[int | None] = read(run.saliency(explainer) / "details/forward_passes", start, stop).tolist()
    return passes


def _store(
    scored: Scores,
    rows: np.ndarray,
    values: dict[str, np.ndarray],
    curves: dict[str, list[np.ndarray | None]],
) -> None:
    """Write the scores of a batch into these rows of ``values`` and ``curves``."""
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
    """The columns of the score file: one row per map and number; undefined values are null."""
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


def _batch(
    run: Run, classifier: BlackBox, stored: dict[str, Tensor], samples: list[dict[str, Any]]
) -> MetricBatch:
    """The batch that metrics see; ``samples`` holds the sample of each map's image."""
    targets = stored["targets"].tolist()
    masks = masks_of(stored["masks"], samples, targets) if run.manifest.masks else None
    return MetricBatch(
        inputs=classifier.inputs_of(stored["inputs"]),
        targets=stored["targets"],
        seeds=stored["seeds"],
        confidence=stored["confidence"],
        # They stay on the host: metrics join the boxes of a whole batch before they copy them.
        boxes=[
            torch.tensor(boxes_of(sample, target), dtype=torch.float32).reshape(-1, 4)
            for sample, target in zip(samples, targets, strict=True)
        ],
        forwards=run.batch_forwards,
        masks=None if masks is None else masks == OBJECT,
        ignored=None if masks is None else masks == IGNORED,
    )
