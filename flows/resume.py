"""What a run folder says is left to do. Without Prefect, so that `floodlit status` answers at once."""

from __future__ import annotations

from explainers.base import Need
from explainers.registry import explainers
from flows.plan import Done, plan
from storage.records import Step, finished, read_record
from storage.run import Run


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
