"""Stage 3: the maps of one explainer for one shard, from cached activations if it reads them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from explainers.base import Batch, Explainer, Explanation, Need
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.models.compute import Compute, full_precision
from explainers.numerics.batching import out_of_memory
from explainers.statuses import STATUSES, Status
from storage.maps import shard_file, write_shard
from storage.records import Agreement, Cost, StageFacts, Step
from storage.run import Run
from tasks.given_maps import given_maps
from tasks.meter import Meter
from tasks.perform import Outcome, perform
from tasks.results.agreement import agreement_of
from tasks.run_parts import classifier_of, compute_of, explainer_of
from tasks.shard_rows import NO_LABEL, batches, targets_and_seeds

logger = logging.getLogger(__name__)


@task(name="saliency", cache_policy=NO_CACHE)
def saliency(root: str, shard: int, explainer: str, halve: bool = False) -> dict[str, Any]:
    """Write one shard of an explainer's maps, with their statuses and details.

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
    step = Step("saliency", shard, explainer)
    return perform(
        root, step, lambda run: _explain(run, shard, explainer), is_done=lambda _: True, halve=halve
    )


def _explain(run: Run, shard: int, name: str) -> Outcome:
    classifier = classifier_of(run)
    explainer = explainer_of(run, name, classifier)
    start, stop = run.rows_of(shard)
    targets, seeds = targets_and_seeds(run, shard, "saliency")
    arrays = _failed_arrays(explainer, stop - start)
    arrays["status"][targets == NO_LABEL] = STATUSES.index(Status.NO_LABEL)
    meter = Meter(classifier.device)
    agreement: Agreement | None = None
    compared = False

    stored = {"inputs": run.inputs}
    if Need.ACTIVATIONS in explainer.needs:
        stored["activations"] = run.activations
    each = {"targets": targets, "seeds": seeds}
    given = given_maps(run, name, shard, targets) if Need.GIVEN in explainer.needs else None
    if given is not None:
        each |= {"given": given.maps, "targets": given.targets}
    for rows, values in batches(run, shard, stored, each, classifier.device):
        batch = Batch(
            inputs=classifier.inputs_of(values["inputs"]),
            targets=values["targets"],
            seeds=values["seeds"],
            activations=values.get("activations"),
            forwards=run.batch_forwards,
            given=values.get("given"),
        )
        with meter:
            explanation = explainer.explain(batch)
        # The first batch shows how far lower precision moves the maps; comparing all would double the work.
        if shard == 0 and not compared and given is None and compute_of(run) != Compute():
            agreement, compared = _agreement(run, name, classifier, batch, explanation.maps), True
        _store(explanation, rows, arrays)
    files = []
    for key, array in arrays.items():
        write_shard(run.saliency(name) / key, start, array)
        files.append(shard_file(run.saliency(name) / key, shard))
    statuses = [STATUSES[code].value for code in arrays["status"]]
    if given is not None:  # what it cost to make them is not known
        return Outcome(stop - start, statuses, files, StageFacts(reasons=given.reasons))
    cost = Cost(int((targets >= 0).sum()), round(meter.seconds, 6), meter.peak)
    return Outcome(stop - start, statuses, files, StageFacts(cost=cost, agreement=agreement))


def _failed_arrays(explainer: Explainer, count: int) -> dict[str, np.ndarray]:
    """The arrays of a shard, in which every map is NaN and failed until it is explained."""
    arrays: dict[str, np.ndarray] = {
        "maps": np.full((count, *explainer.describe().grid), np.nan, np.float32),
        "status": np.full(count, STATUSES.index(Status.FAILED), np.int8),
    }
    # Details may be of integers, which have no NaN; the status says which of them are valid.
    for key, detail in explainer.describe().details.items():
        arrays[f"details/{key}"] = np.zeros((count, *detail.shape), detail.dtype)
    return arrays


def _agreement(run: Run, name: str, classifier: BlackBox, batch: Batch, maps: Tensor) -> Agreement | None:
    """How well the maps of a batch agree with its maps in plain float32, which are made for this.

    None if the batch does not fit the device in float32.
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
        logger.warning("%s does not fit the device in float32: its maps are not compared with float32", name)
        return None
    return agreement_of(maps, reference, classifier.sites(batch.inputs))


def _store(explanation: Explanation, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """Write the explanation of a batch into these rows of the arrays."""
    arrays["maps"][rows] = explanation.maps.float().cpu().numpy()
    arrays["status"][rows] = [STATUSES.index(status) for status in explanation.statuses]
    for key, values in explanation.details.items():
        arrays[f"details/{key}"][rows] = values.cpu().numpy()
