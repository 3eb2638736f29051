"""Translation of a dataset's labels into the numbers that the model gives its classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from explainers.models.black_box import BlackBox
from explainers.models.class_matching import Matching, close_names, match
from flows.job import JobError
from storage.datasets.dataset import Dataset

_NAMED = 3  # classes that a message names


@dataclass(frozen=True)
class Labels:
    """How the labels of a dataset become classes of the model.

    Attributes
    ----------
    indices
        The model's class by the dataset's label; a label that is left out is none of the model's classes.
        None if the labels are the model's numbers as they are.
    told
        The same in words, for people to read; empty if there are no labels.
    named
        Whether the dataset's names are those of the model's classes.
    refusal
        Why the labels cannot be the classes to explain; None if they can.
    """

    indices: dict[int, int] | None = None
    told: str = ""
    refusal: str | None = None
    named: bool = False


def translated(dataset: Dataset, agrees: bool, classifier: BlackBox) -> Labels:
    """Find out which of the model's classes the labels of a dataset are.

    Classes with names are looked up among the names of the model's classes. Numbers without names are their
    author's, and are taken as the model's. Numbers that were given to names in sorted order are taken as the
    model's for the accuracy only, and only if there are as many classes; the job may say that they agree.

    Parameters
    ----------
    agrees
        Whether the job says that the dataset's numbers are the model's.

    Raises
    ------
    JobError
        If the job says so, and the names of the classes say otherwise.
    """
    count = classifier.num_classes
    if not dataset.classes:
        return _numbers(dataset, count)
    matching = match(dataset.classes, classifier.class_names, count)
    if agrees:
        return _agreeing(dataset, matching, count)
    used = list(range(len(dataset.classes)))
    if matching.reasons:  # a class without samples, such as an empty folder, does not matter
        labels = {label for sample in dataset.samples for label in sample.every_label}
        used = [label for label in used if label in labels]
    if not used:
        return Labels()
    if not any(label in matching.reasons for label in used):
        indices = {label: matching.indices[label] for label in used}
        return Labels(indices, f"matched with the model's classes by {matching.how}")
    if classifier.class_names is None and matching.how != "number":
        return _unnamed(dataset, count)
    return _partly(dataset, matching, used, classifier)


def _numbers(dataset: Dataset, count: int) -> Labels:
    """Take the author's numbers as they are, if the model has all of them."""
    labels = {label for sample in dataset.samples for label in sample.every_label}
    if not labels:
        return Labels()
    beyond = [label for label in labels if not 0 <= label < count]
    if beyond:
        worst = max(beyond)
        told = f"the dataset has label {worst}, and the model the classes 0 to {count - 1}"
        return Labels({}, f"not the model's numbers: {told}", not_numbered(worst, count))
    return Labels(None, "the dataset's numbers, taken as the model's")


def _agreeing(dataset: Dataset, matching: Matching, count: int) -> Labels:
    """Take the dataset's numbers as the model's, since the job says so."""
    names = dataset.classes
    other = next((label for label, index in matching.indices.items() if label != index), None)
    if other is not None:
        raise JobError(
            f'dataset.numbering: "model" cannot be: class {names[other]!r} has the number {other} in the '
            f"dataset and {matching.indices[other]} in the model; leave the key out, and it is translated, "
            "or name the model's classes in a file (model.class_names)"
        )
    if len(names) > count:
        raise JobError(
            f'dataset.numbering: "model" cannot be: the dataset has {len(names)} classes, the model {count}'
        )
    told = "the dataset's numbers, which the job says are the model's"
    # Names that the model would have from its source are of other classes then.
    return Labels(_same(names), told, named=bool(matching.reasons))


def _unnamed(dataset: Dataset, count: int) -> Labels:
    """Judge the dataset's own numbers where nothing names the model's classes."""
    names = dataset.classes
    if len(names) != count:
        told = f"the dataset has {len(names)} classes and the model {count}, whose names are not known"
        return Labels({}, f"not the model's numbers: {told}", f"needs the model's classes: {told}{_ADVICE}")
    if dataset.published:
        return Labels(_same(names), "the numbers with which the set is published, taken as the model's")
    return Labels(
        _same(names),
        "numbered in the sorted order of their names, taken as the model's numbers",
        f"needs the model's classes, whose names are not known; the dataset's are numbered in sorted order, "
        f"{_listed(names)}{_ADVICE}",
    )


_ADVICE = (
    '; name the model\'s classes in a file (model.class_names), or set dataset.numbering = "model" if the '
    "model was trained with the dataset's numbers"
)


def _partly(dataset: Dataset, matching: Matching, used: Iterable[int], classifier: BlackBox) -> Labels:
    """Keep the classes that were found, and name one that was not."""
    names, lost = dataset.classes, [label for label in used if label in matching.reasons]
    first, more = lost[0], f", and {len(lost) - 1} more such classes" if len(lost) > 1 else ""
    close = close_names(names[first], classifier.class_names or ())
    like = f" (close are {', '.join(close)})" if close else ""
    found = {label: matching.indices[label] for label in used if label in matching.indices}
    reason = f"class {matching.reasons[first]}{like}{more}"
    return Labels(
        found,
        f"{len(found)} of {len(found) + len(lost)} classes matched with the model's; {reason}",
        f"needs classes of the model: {reason}; rename it after the model's class or its synset, name the "
        'model\'s classes in a file (model.class_names), or use "predicted"',
    )


def not_numbered(label: int, count: int) -> str:
    """The refusal of a label that is no number of the model's classes."""
    return (
        f"needs labels in the model's numbering, 0 to {count - 1}; the dataset has label {label}; use "
        '"predicted"'
    )


def _same(names: list[str]) -> dict[int, int]:
    """The dataset's numbers as they are; a label that names no class, such as -1, is left out."""
    return {label: label for label in range(len(names))}


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{number} {name!r}" for number, name in enumerate(names[:_NAMED]))
    return f"{shown}, ..." if len(names) > _NAMED else shown
