"""Checks of the classes that a job explains, and how many of them there are per image."""

from __future__ import annotations

from flows.job import Job, JobError, LabelTargets, TopTargets
from flows.labels import Labels, not_numbered
from storage.datasets.dataset import Dataset

_MOST_LABELS = 20  # labels of an image that a job explains without saying how many


def check_targets(job: Job, classes: int, dataset: Dataset, labels: Labels) -> None:
    """Raise JobError if the model, of so many classes, does not have the target class of every sample."""
    if isinstance(job.target, TopTargets):
        if job.target.top > classes:
            raise JobError(f"target: top = {job.target.top}, but the model has {classes} classes")
    elif isinstance(job.target, int):
        if not 0 <= job.target < classes:
            raise JobError(f"target: {job.target} is not a class of the model; choose 0 to {classes - 1}")
    elif job.target != "predicted":
        _check_labels(job, classes, dataset, labels)


def _check_labels(job: Job, classes: int, dataset: Dataset, labels: Labels) -> None:
    """Raise JobError if the labels that the job explains are not all classes of the model."""
    name = '"label"' if job.target == "label" else '"labels"'
    found = {label for sample in dataset.samples for label in sample.every_label}
    if job.target == "label":
        if any(sample.labels for sample in dataset.samples):
            raise JobError('target: "label" is for one label per sample; use "labels" or {labels = 3}')
        if any(sample.label is None for sample in dataset.samples):
            raise JobError('target: "label" needs a label for every sample; use "predicted"')
    if not found:
        raise JobError(f'target: {name} needs labels, and the dataset has none; use "predicted"')
    if labels.refusal is not None:
        raise JobError(f"target: {name} {labels.refusal}")
    for label in found:
        if labels.indices is not None and label not in labels.indices:
            raise JobError(f"target: {name} {not_numbered(label, classes)}")


def targets_per_image(job: Job, dataset: Dataset) -> int:
    """Return the number of maps per image and explainer; an image with fewer labels has empty rows.

    Raises
    ------
    JobError
        If an image has more labels than a job explains that does not say how many.
    """
    if isinstance(job.target, TopTargets):
        return job.target.top
    if job.target != "labels" and not isinstance(job.target, LabelTargets):
        return 1
    most = max(len(sample.every_label) for sample in dataset.samples)
    if isinstance(job.target, LabelTargets):
        return min(most, job.target.labels)
    if most > _MOST_LABELS:
        raise JobError(
            f"target: an image has {most} labels, and every image would have rows for as many maps; set "
            f"{{labels = {_MOST_LABELS}}}, or another number, to explain the first ones"
        )
    return most


def masks_per_image(dataset: Dataset) -> int:
    """Return the number of masks of an image: one per label; 0 if it has one whatever class is explained."""
    if dataset.masks is None or not dataset.masks_by_label:
        return 0
    return max((len(sample.labels) for sample in dataset.samples), default=0) or 1
