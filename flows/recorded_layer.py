"""The target layer that a run recorded, so that it is sought once per run."""

from __future__ import annotations

from explainers.models.loading import ModelSpec
from flows.job import Job
from storage.manifest import differences
from storage.run import Run


def with_recorded_layer(job: Job) -> ModelSpec:
    """Return the job's model, with the layer of the run in its store if the job names none.

    Another release, or another machine, may find another layer, at which the run could not be extended.
    """
    model = job.model
    if model.layer is not None:
        return model
    try:
        run = Run.open(job.store)
    except ValueError:  # there is none yet, or what is wrong with it is said when it is opened
        return model
    if run.layer is None or differences(run.manifest.identity["model"], model.model_dump(mode="json")):
        return model
    return model.model_copy(update={"layer": run.layer})
