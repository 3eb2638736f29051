"""What was run: the model, the dataset, how many images and maps there are and what became of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import tomli_w

from explainers.models.modality import MODALITIES
from storage.records import STAGES, DoneRecord, failures
from storage.run import Run
from storage.samples import each_sample
from tasks.page.told_paths import common_folder, from_folder
from tasks.results.accuracy import read_accuracy
from tasks.results.calibration import Calibration, calibration_of
from tasks.results.remarks import layer_of, notes_of, unscored


@dataclass(frozen=True)
class RunFacts:
    """What the report says about a run besides its scores.

    Attributes
    ----------
    name, created, hash
        The job's name, when the run was created, and the hash of what its results depend on.
    steps, done, lost
        Number of the run's steps, of those that are done, and of those that failed.
    lines
        What was run, by subject: dataset, model, target, and so on.
    remarks
        Lines on what was done to the inputs, on unusual maps, and on metrics without a value.
    statuses
        Per explainer the number of its maps by status.
    failed
        At most 20 inputs that could not be used: the row in the run, the file or id, and the reason.
    unusable
        Number of inputs that could not be used.
    calibration
        The model's calibration; None without labels, or where a class does not exclude another.
    versions
        Versions of the code and its libraries.
    job
        The job as TOML, with all defaults.
    folder
        Whether its paths start at a folder that holds the run and what the job reads.
    noun
        What the inputs are, in the plural.
    """

    name: str
    created: str
    hash: str
    steps: int
    done: int
    lost: int
    lines: dict[str, str]
    remarks: list[str]
    statuses: dict[str, Counter[str]]
    failed: list[tuple[int, str, str]]
    unusable: int
    calibration: Calibration | None
    versions: dict[str, str]
    job: str
    folder: bool
    noun: str


def facts_of(run: Run, summary: Any = None) -> RunFacts:
    """Collect what was run.

    Parameters
    ----------
    run
        A run in any state.
    summary
        The table ``summary.parquet``; None as long as there is none.
    """
    records, manifest = run.records(), run.manifest
    done = {record.step for record in records if _is_whole(run, record)}
    statuses = {name: Counter[str]() for name in run.explainers}
    for record in records:
        if record.step.stage == "saliency":
            statuses[record.step.explainer].update(record.statuses)
    failed, unusable = _unusable(run)
    remarks = [*([] if summary is None else unscored(summary)), *notes_of(run, records)]
    folder = common_folder(run.job)
    return RunFacts(
        name=run.name,
        created=manifest.created,
        hash=run.hash,
        steps=run.layout.steps,
        done=len(done),
        lost=len(failures(run.root).keys() - done),
        lines=from_folder({key: value for key, value in _lines(run).items() if value}, folder),
        remarks=from_folder(remarks, folder),
        statuses=statuses,
        failed=[(row, *from_folder(told, folder)) for row, *told in failed],
        unusable=unusable,
        calibration=calibration_of(run),
        versions=manifest.versions,
        job=tomli_w.dumps(from_folder(run.job_as_given, folder)),
        folder=folder is not None,
        noun=MODALITIES[run.modality].plural,
    )


def _unusable(run: Run) -> tuple[list[tuple[int, str, str]], int]:
    """At most 20 inputs that could not be used, with the row and the reason, and how many there are."""
    failed: list[tuple[int, str, str]] = []
    unusable = 0
    columns = ["sample_id", "uri", "status", "error"]
    for row, sample in enumerate(each_sample(run.root, columns) if run.samples.exists() else ()):
        if sample["status"] != "ok":
            unusable += 1
            if unusable <= 20:
                told = sample["uri"] or sample["sample_id"], sample["error"] or sample["status"]
                failed.append((row, *told))
    return failed, unusable


def _is_whole(run: Run, record: DoneRecord) -> bool:
    """Whether a record is that of a step, and of all metrics: a job may have been extended since."""
    metrics = set(record.facts.metrics or ()) if record.step.stage == "scores" else set(run.metrics)
    return record.step.stage in STAGES and metrics >= set(run.metrics)


def _lines(run: Run) -> dict[str, str]:
    """The facts by subject; an empty line is left out by the caller."""
    dataset, model, manifest = run.job["dataset"], run.job["model"], run.manifest
    accuracy = read_accuracy(run)
    named = [dataset["kind"], *(str(dataset[key]) for key in ("name", "path", "split") if dataset.get(key))]
    size = "x".join(map(str, manifest.input_shape))
    several = f", {run.targets_per_image} classes each" if run.targets_per_image > 1 else ""
    return {
        "Dataset": " · ".join(named),
        "Inputs": f"{run.rows:,} {MODALITIES[run.modality].plural}, {size}, {manifest.input_dtype}",
        "Read as": manifest.dataset_read,
        "Model": " · ".join(str(model[key]) for key in ("source", "name", "weights") if model.get(key)),
        "Layer": layer_of(run) if run.layer is not None else "",
        "Outputs": manifest.outputs,
        "Explained class": f"{run.target}{several}",
        "Labels": manifest.labels if accuracy is None and manifest.labels else "",
        "Accuracy": accuracy.told() if accuracy is not None else "",
    }
