"""The search for findings in a job: its checks, its steps, and a finished run as the job that adds them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from explainers.models.black_box import BlackBox
from explainers.models.modality import MODALITIES
from flows.chosen_explainers import Chosen
from flows.job import FindingsChoice, Job, JobError
from plugins.registry import complaints
from storage.findings import drop_suspicions
from storage.manifest import FindingsEntry
from storage.places import is_there
from storage.records import SUSPICIONS, Step, failures
from storage.run import Run

_LEAST_CELLS = 4  # of a map that says where something is


def check_findings(job: Job, classifier: BlackBox, chosen: dict[str, Chosen]) -> dict[str, FindingsEntry]:
    """Return how findings are looked for, by explainer.

    Raises
    ------
    JobError
        If the job asks for findings that there cannot be.
    """
    if not job.findings:
        return {}
    if classifier.modality != "image":
        inputs = MODALITIES[classifier.modality].plural
        raise JobError(
            f"findings: are looked for in images, and the dataset has {inputs}; leave the table out"
        )
    if isinstance(job.target, int):
        raise JobError(
            f"findings: target = {job.target} explains one class, and findings need the maps of the others "
            'too; set target = "predicted"'
        )
    for choice in job.findings:
        if choice.explainer not in chosen:
            raise JobError(f"findings.explainer: {choice.explainer} cannot explain the model; choose another")
        grid = chosen[choice.explainer].explainer.describe().grid
        if math.prod(grid) < _LEAST_CELLS:
            raise JobError(
                f"findings.explainer: the maps of {choice.explainer} have {'x'.join(map(str, grid))} cells, "
                "which say of no place; choose another explainer or an earlier model.layer"
            )
    return {choice.explainer: FindingsEntry(passes=choice.passes) for choice in job.findings}


def pending_findings(run: Run) -> dict[Step, set[Step]]:
    """Return the steps that still have to look for findings; they wait for no other steps."""
    parts, done = range(run.layout.parts), run.finished()
    steps = (Step(SUSPICIONS, part, name) for name in run.manifest.findings for part in parts)
    return {step: set() for step in steps if step not in done}


def forget_outdated(run: Run, todo: Iterable[Step]) -> None:
    """Forget what is suspected with the maps or the predictions that these steps are about to make."""
    todo, done = set(todo), run.finished()
    # A recorded step of the activations makes them again where they were deleted; the predictions stay.
    shared = any(step.stage in {"inputs", "activations"} for step in todo - done)
    own = {step.explainer for step in todo if step.stage == "saliency"}
    changed = [name for name in run.manifest.findings if shared or name in own]
    drop_suspicions(run.root, run.layout, changed)


def missing_findings(run: Run) -> list[str]:
    """Return one line on parts of the classes in which no findings were looked for, if there are any."""
    pending = pending_findings(run)
    if not pending:
        return []
    why = next((failed.error for step, failed in failures(run.root).items() if step in pending), None)
    reason = f"the first one failed: {why}" if why else "run the job again"
    return [f"findings: {len(pending)} parts of the classes are missing; {reason}"]


def job_with_findings(directory: Path, explainers: list[str], passes: int | None) -> Job:
    """Return the job of a finished run, with findings in addition.

    Parameters
    ----------
    directory
        The run folder, which may have been moved.
    explainers
        What the run calls the explainers; none stands for its first one.
    passes
        Passes through the network per class; None stands for the job's default.

    Raises
    ------
    ValueError
        If there is no finished run, or the run's job cannot be read.
    """
    run = Run.open(directory)
    if not is_there(run.summary):
        raise JobError(f"{run.root} is not finished; run its job first")
    names = explainers or [next(iter(run.explainers))]
    for name in names:
        if name not in run.explainers:
            raise JobError(
                f"--explainer: {name} is no explainer of the run; choose from {', '.join(run.explainers)}"
            )
    asked = FindingsChoice.model_fields["passes"].default if passes is None else passes
    known = {name: entry.passes for name, entry in run.manifest.findings.items()}
    known |= dict.fromkeys(names, asked)
    added = [{"explainer": name, "passes": each} for name, each in known.items()]
    try:
        return Job.model_validate(run.job_as_given | {"store": str(run.root), "findings": added})
    except ValidationError as error:  # e.g. a plug-in of the job is not installed here
        raise JobError(f"the job in {run.root}: {complaints(error)}") from error
