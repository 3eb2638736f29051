"""Beside the scores, if the job asks for it: what is suspected of some classes, tested by interventions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from explainers.models.black_box import BlackBox
from explainers.numerics.randomness import seed_of
from storage.findings import write_part
from storage.records import SUSPICIONS, Step
from storage.run import Run
from tasks.findings.examine import examine_class, suspicions_of
from tasks.findings.of_run import Used, off_object_of, seen_of, used_of
from tasks.findings.reading import reading
from tasks.findings.seen import Rows, Seen
from tasks.findings.stored import packed
from tasks.findings.strategies import Cluster, strategies_of
from tasks.perform import Outcome, perform
from tasks.run_parts import classifier_of

NO_IMAGES = "no_images"


@task(name="suspicions", cache_policy=NO_CACHE)
def suspicions(root: str, part: int, explainer: str, halve: bool = False) -> dict[str, Any]:
    """Look for findings in the classes of a part, with the maps of one explainer.

    What is decided depends on all classes of the run, so it is decided at the end, from what is stored here.

    Parameters
    ----------
    root
        The run folder.
    part
        Index of the part of the classes, from 0.
    explainer
        The explainer, as the run calls it.
    halve
        Whether to halve the batch sizes, as a retry does.

    Returns
    -------
    dict
        The path of the done-record, the classes and the seconds; see :func:`tasks.perform.perform`.
    """
    step = Step(SUSPICIONS, part, explainer)
    return perform(
        root, step, lambda run: _examine(run, part, explainer), is_done=lambda _: True, halve=halve
    )


def _examine(run: Run, part: int, explainer: str) -> Outcome:
    classifier = classifier_of(run)
    used, seen = used_of(run, explainer), seen_of(run, explainer, classifier)
    suspected: list[dict[str, Any]] = []
    clustered: list[dict[str, Any]] = []
    statuses = []
    for target in run.layout.classes_of(part):
        rows = seen.rows_of(target)
        statuses.append("ok" if len(rows) else NO_IMAGES)
        if len(rows):
            suspected += _suspected(run, explainer, classifier, seen, target)
            clustered += _clustered(run, used, seen, target, rows)
    files = write_part(run.root, explainer, part, suspected, clustered)
    return Outcome(len(statuses), statuses, files)


def _suspected(
    run: Run, explainer: str, classifier: BlackBox, seen: Seen, target: int
) -> list[dict[str, Any]]:
    """What is suspected of a class, with all that was measured about it."""
    height, width = run.input_size
    found = suspicions_of(seen, target, (height, width), off_object_of(run, explainer).get(target))
    passes = run.manifest.findings[explainer].passes
    return [
        {
            "class": target,
            "class_images": len(seen.rows_of(target)),
            "reading": reading(seen, outcome),
            "mean_map": seen.maps[outcome.suspicion.exemplars].mean(0).flatten().tolist(),
            "outcome": packed(outcome),
        }
        for outcome in examine_class(classifier, seen, found, passes, run.batch_forwards)
    ]


def _clustered(run: Run, used: Used, seen: Seen, target: int, rows: Rows) -> list[dict[str, Any]]:
    """The strategies of a class."""
    found = strategies_of(seen.maps.numpy(), rows, seed_of(run.seed, "strategies", target))
    return [
        {
            "class": target,
            "view": "strategies",
            "cluster": number,
            "images": len(cluster.rows),
            "share": len(cluster.rows) / len(rows),
            **_facts(used, seen, cluster),
            "told": found.reason,
            "mean_map": cluster.mean.flatten().tolist(),
        }
        for number, cluster in enumerate(found.clusters, 1)
    ]


def _facts(used: Used, seen: Seen, cluster: Cluster) -> dict[str, Any]:
    """What the labels, the network and the boxes say about the images of a cluster."""
    labels = used.labels[cluster.rows]
    right = (labels == used.classes[cluster.rows])[labels >= 0]
    return {
        "accuracy": _mean(right.astype(np.float64)),
        "confidence": _mean(used.confidence[cluster.rows]),
        "on_object": None if seen.shares is None else _mean(seen.shares[cluster.rows]),
        "exemplars": [used.samples[row]["sample_id"] for row in cluster.exemplars],
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of the numbers that are not NaN; None if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
