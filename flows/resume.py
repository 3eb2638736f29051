"""The remaining steps of a run folder. It imports no Prefect, so that `floodlit status` answers at once."""

from __future__ import annotations

from collections.abc import Sequence, Set

from flows.plan import Done, pending_steps
from storage.records import DoneRecord, Step, failures
from storage.run import Run


def without(pending: dict[Step, set[Step]], failed: Set[Step]) -> dict[Step, set[Step]]:
    """Return the pending steps without those that failed and without all steps that wait for them."""
    lost = set(failed)
    for step, needs in pending.items():  # a step comes after the steps that it needs, so one pass is enough
        if needs & lost:
            lost.add(step)
    return {step: needs for step, needs in pending.items() if step not in lost}


def tolerated(run: Run, lost: dict[Step, set[Step]]) -> bool:
    """Whether the job succeeds although the steps ``lost``, as :func:`remaining` gives them, are not done.

    It does if each lost step failed or waits for a failed step, and if their share of the explainers' steps
    is at most the job's tolerance. A job without some of its inputs or predictions never succeeds.
    """
    failed = failures(run.root).keys()
    given_up = not without(lost, failed) and all(step.explainer for step in lost)
    # Each explainer has two steps per shard: saliency and scores.
    return given_up and len(lost) <= run.tolerance * len(run.explainers) * 2 * run.shards


def remaining(run: Run, records: Sequence[DoneRecord] | None = None) -> dict[Step, set[Step]]:
    """Return the pending steps of a run, computed from its done-records, which are read if none are given."""
    records = run.records() if records is None else records
    done = Done(
        steps={record.step for record in records},
        metrics={record.step: set(record.facts.metrics or ()) for record in records},
        dropped={record.step for record in records if record.facts.cached is False},
    )
    # The manifest says it, since a command that only looks must not import what a run folder names.
    reads = {name: entry.layer is not None for name, entry in run.explainers.items()}
    return pending_steps(run.shards, reads, set(run.metrics), done)
