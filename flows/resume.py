"""What a run folder says is left to do. Without Prefect, so that `floodlit status` answers at once."""

from __future__ import annotations

from collections.abc import Iterable, Set

from explainers.base import Need
from explainers.registry import explainers
from flows.plan import Done, plan
from storage.records import Step, failures, finished, read_record
from storage.run import Run


def without(pending: dict[Step, set[Step]], failed: Set[Step]) -> dict[Step, set[Step]]:
    """The pending steps apart from those that failed and all that waits for them."""
    lost = set(failed)
    for step, needs in pending.items():  # in an order in which what is needed comes first
        if needs & lost:
            lost.add(step)
    return {step: needs for step, needs in pending.items() if step not in lost}


def tolerated(run: Run, lost: Iterable[Step]) -> bool:
    """Whether the job succeeds without these steps, all of them failed or waiting for one that did.

    Without inputs or predictions it never does.
    """
    failed = failures(run.root).keys()
    lost = set(lost)
    given_up = not without(remaining(run), failed) and all(step.explainer for step in lost)
    return given_up and len(lost) <= run.job["tolerance"] * len(run.explainers) * 2 * run.shards


def remaining(run: Run) -> dict[Step, set[Step]]:
    """The pending steps of a run, from its done-records."""
    steps = finished(run.root)
    records = {step: read_record(run.root, step) or {} for step in steps}
    done = Done(
        steps=steps,
        metrics={step: set(records[step]["metrics"]) for step in steps if step.stage == "scores"},
        dropped={step for step in steps if step.stage == "activations" and not records[step]["cached"]},
    )
    reads = {name: Need.ACTIVATIONS in explainers.get(name).needs for name in run.explainers}
    return plan(run.shards, reads, set(run.metrics), done)
