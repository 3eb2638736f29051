"""Stage 3: one explainer on one shard, from cached activations where it reads them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from explainers.base import Batch, Explainer, Explanation, Need, Status
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.models.compute import Compute, full_precision
from explainers.numerics.batching import out_of_memory
from explainers.numerics.randomness import seed_of
from explainers.registry import explainers
from storage.maps import shard_file, write_shard
from storage.records import Step
from storage.run import Run
from storage.scores import read_samples_of_shard
from tasks.perform import Outcome, chunks, classifier_of, compute_of, perform
from tasks.prefetch import ahead
from tasks.results.agreement import drift
from tasks.results.costs import Meter
from tasks.shard_reader import Images

logger = logging.getLogger(__name__)

STATUSES = list(Status)  # the order in which a map's status is stored as a number


@task(name="saliency", cache_policy=NO_CACHE)
def saliency(root: str, shard: int, explainer: str, halve: bool = False) -> dict[str, Any]:
    """Write one shard of an explainer's maps, their statuses and details."""
    step = Step("saliency", shard, explainer)
    return perform(
        root, step, lambda run: _explain(run, shard, explainer), is_done=lambda _: True, halve=halve
    )


def explainer_of(run: Run, name: str, classifier: BlackBox) -> Explainer:
    """The run's explainer of that name, with the parameters the run was created with."""
    cls = explainers.get(name)
    made: Explainer = cls(classifier, cls.Parameters(**run.explainers[name]["parameters"]))
    return made


def _explain(run: Run, shard: int, name: str) -> Outcome:
    classifier = classifier_of(run)
    explainer = explainer_of(run, name, classifier)
    start, stop = run.rows_of(shard)
    targets, seeds = targets_and_seeds(run, shard, "saliency")
    arrays = _nothing_yet(explainer, stop - start)
    meter = Meter(classifier.device)
    effect: dict[str, float | None] | None = None

    blocks = {"inputs": Images(run, run.inputs, shard)}
    if Need.ACTIVATIONS in explainer.needs:
        blocks["activations"] = Images(run, run.activations, shard)

    def read_batch(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        images = rows // run.targets_per_image
        stored = {name: block.of(images) for name, block in blocks.items()}
        return stored | {"targets": targets[rows], "seeds": seeds[rows]}

    for rows, stored in ahead(batches(run, targets), read_batch, classifier.device):
        batch = Batch(
            inputs=classifier.inputs_of(stored["inputs"]),
            targets=stored["targets"],
            seeds=stored["seeds"],
            activations=stored.get("activations"),
            forwards=run.batch_forwards,
        )
        with meter:
            explanation = explainer.explain(batch)
        if shard == 0 and effect is None and compute_of(run) != Compute():
            effect = _effect(run, name, classifier, batch, explanation.maps)
        _put(explanation, rows, arrays)
    files = []
    for key, values in arrays.items():
        write_shard(run.saliency(name) / key, start, values)
        files.append(shard_file(run.saliency(name) / key, shard))
    statuses = [STATUSES[code].value for code in arrays["status"]]
    cost = {
        "explained": int((targets >= 0).sum()),
        "explain_seconds": round(meter.seconds, 6),
        "peak_bytes": meter.peak,
    }
    return Outcome(stop - start, statuses, files, cost | (effect or {}))


def _nothing_yet(explainer: Explainer, count: int) -> dict[str, np.ndarray]:
    """The arrays of a shard's maps, all of them failed."""
    arrays: dict[str, np.ndarray] = {
        "maps": np.full((count, *explainer.describe().grid), np.nan, np.float32),
        "status": np.full(count, STATUSES.index(Status.FAILED), np.int8),
    }
    for key, detail in explainer.describe().details.items():
        arrays[f"details/{key}"] = np.zeros((count, *detail.shape), detail.dtype)
    return arrays


def _effect(run: Run, name: str, classifier: BlackBox, batch: Batch, maps: Tensor) -> dict[str, float | None]:
    """What the run's :class:`Compute` did to the maps of a batch: they are made once more without it.

    Nothing where they do not fit the device so.
    """
    try:
        with full_precision():
            if batch.activations is not None and isinstance(classifier, Classifier):
                with torch.no_grad():
                    batch = replace(batch, activations=classifier.activations(batch.inputs))
            reference = explainer_of(run, name, classifier).explain(batch).maps
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        logger.warning("%s in float32 does not fit the device: its maps are not compared with it", name)
        return {}
    return drift(maps, reference, classifier.sites(batch.inputs))


def _put(explanation: Explanation, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """Put explanations in their places."""
    arrays["maps"][rows] = explanation.maps.float().cpu().numpy()
    arrays["status"][rows] = [STATUSES.index(status) for status in explanation.statuses]
    for key, values in explanation.details.items():
        arrays[f"details/{key}"][rows] = values.cpu().numpy()


def targets_and_seeds(run: Run, shard: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Class and seed of every map of a shard, image by image; class -1 where the image has none.

    ``purpose`` keeps the random numbers of explainers and metrics apart: with the same seeds the random
    control would be ranked exactly as the tie-break ranks a constant map.
    """
    classes, seeds = [], []
    for sample in read_samples_of_shard(run.root, shard):
        targets = list(sample["targets"])
        classes += targets + [-1] * (run.targets_per_image - len(targets))
        seeds += [seed_of(run.seed, purpose, sample["sample_id"])] * run.targets_per_image
    return np.array(classes, np.int64), np.array(seeds, np.int64)


def batches(run: Run, targets: NDArray[Any]) -> list[NDArray[Any]]:
    """Rows of a shard's maps, in steps of the run's size, without those that have no target."""
    steps = (np.arange(step.start, step.stop) for step in chunks(len(targets), run.batch_images))
    return [able for rows in steps if len(able := rows[targets[rows] >= 0])]
