"""Beside the scores, if the job asks for it: what is suspected of some classes, tested by interventions."""

from __future__ import annotations

from dataclasses import dataclass
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
from tasks.findings.of_run import Used, off_object_of, seen_of, source_of, units_of, used_of
from tasks.findings.reading import reading
from tasks.findings.seen import Rows, Seen
from tasks.findings.stored import packed
from tasks.findings.strategies import EXEMPLARS, strategies_of
from tasks.findings.units import class_units, information
from tasks.perform import Outcome, perform
from tasks.run_parts import classifier_of

NO_IMAGES = "no_images"
MOST_UNITS = 3  # of a class, those that most of its images keep


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
    source = source_of(run, explainer)
    used, seen = used_of(source), seen_of(source, classifier)
    kept, off = units_of(source), off_object_of(source)
    units = None if kept is None else _Units(kept, information(kept, used.classes))
    suspected: list[dict[str, Any]] = []
    clustered: list[dict[str, Any]] = []
    statuses = []
    for target in run.layout.classes_of(part):
        rows = seen.rows_of(target)
        statuses.append("ok" if len(rows) else NO_IMAGES)
        if len(rows):
            suspected += _suspected(run, explainer, classifier, seen, target, off.get(target))
            clustered += _clustered(run, used, seen, target, rows)
            clustered += [] if units is None else units.rows_of(run, used, seen, target, rows)
    files = write_part(run.root, explainer, part, suspected, clustered)
    return Outcome(len(statuses), statuses, files)


def _suspected(
    run: Run,
    explainer: str,
    classifier: BlackBox,
    seen: Seen,
    target: int,
    off: tuple[Rows, float] | None,
) -> list[dict[str, Any]]:
    """What is suspected of a class, with all that was measured about it; ``off`` as for `suspicions_of`."""
    height, width = run.input_size
    found = suspicions_of(seen, target, (height, width), off)
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
            **_facts(used, seen, cluster.rows, cluster.exemplars),
            "told": found.reason,
            "mean_map": cluster.mean.flatten().tolist(),
        }
        for number, cluster in enumerate(found.clusters, 1)
    ]


@dataclass(frozen=True, eq=False)
class _Units:
    """The units that an explainer keeps, (N, U), and what each tells about the class, in nats (U,)."""

    kept: NDArray[np.bool_]
    information: NDArray[np.float64]

    def rows_of(self, run: Run, used: Used, seen: Seen, target: int, rows: Rows) -> list[dict[str, Any]]:
        """The units that most images of a class keep."""
        found = class_units(self.kept[rows], seed_of(run.seed, "units", target))
        most = [n for n in np.argsort(-found.frequency, kind="stable")[:MOST_UNITS] if found.frequency[n] > 0]
        size = self.kept[rows].sum(1)
        told = []
        for unit in most:
            own = self.kept[rows, unit]
            smallest = np.argsort(np.where(own, size, self.kept.shape[1] + 1), kind="stable")
            exemplars = rows[smallest[: min(EXEMPLARS, int(own.sum()))]]
            told.append(
                {
                    "class": target,
                    "view": "units",
                    "cluster": int(unit),
                    "images": int(own.sum()),
                    "share": float(own.mean()),
                    **_facts(used, seen, rows[own], exemplars),
                    "told": f"kept in {found.frequency[unit]:.0%} of the {found.images} sets of the class, "
                    f"enough alone in {found.alone[unit]:.0%}; tells {self.information[unit]:.2f} nats about "
                    f"the class; sets of the class agree by {found.agreement:.2f}",
                    "mean_map": seen.maps[rows[own]].mean(0).flatten().tolist(),
                }
            )
        return told


def _facts(used: Used, seen: Seen, rows: Rows, exemplars: Rows) -> dict[str, Any]:
    """What the labels, the network and the boxes say about some images, and the names of the exemplars."""
    labels = used.labels[rows]
    right = (labels == used.classes[rows])[labels >= 0]
    return {
        "accuracy": _mean(right.astype(np.float64)),
        "confidence": _mean(used.confidence[rows]),
        "on_object": None if seen.shares is None else _mean(seen.shares[rows]),
        "exemplars": [used.samples[row]["sample_id"] for row in exemplars],
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of the numbers that are not NaN; None if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
