"""How often the model's prediction is a label of the run, and whether that is better than chance."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from storage.files import UnreadableError, read_json, write_json
from storage.places import is_there
from storage.run import Run
from storage.samples import read_hits

_BY_CHANCE = 0.05  # a result that guessing reaches more often than this may be chance
_UNLUCKY = 0.1  # a result that a fair model falls down to less often than this is no bad luck


class Accuracy(BaseModel):
    """How many predictions are the labels: the content of ``accuracy.json``.

    Attributes
    ----------
    labelled
        Images with a prediction and a label that is a class of the model.
    correct
        Those of them whose prediction, the most probable class, is the label.
    classes
        Number of the model's classes.
    labels
        How the labels became the model's numbers, in words.
    exclusive
        Whether classes exclude each other for the model and in the dataset. Otherwise an image may have
        several labels, so that the numbers are no accuracy: they say whether the most probable class is one
        of the labels.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    labelled: int = Field(ge=0)
    correct: int = Field(ge=0)
    classes: int = Field(ge=2)
    labels: str
    exclusive: bool = True

    @property
    def value(self) -> float | None:
        """The share of the predictions that are the labels, in [0, 1]; None without any label."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def is_chance(self) -> bool:
        """Whether the accuracy is no better than that of guessing, which is right once in ``classes`` times.

        Two one-sided binomial tests have to say so. Guessing reaches as many correct predictions in more than
        5 % of all cases. And a fair model, whose accuracy lies halfway between guessing and perfection, has
        so few in less than 10 % of all cases: a few images alone prove nothing. With 1,000 classes, 3 images
        without a correct prediction are no reason to warn, and 4 are. It is not known where an image may have
        several labels.
        """
        if not self.labelled or not self.exclusive:
            return False
        from scipy.stats import binom  # imported late, since `floodlit status` imports this module

        guessing = 1 / self.classes
        reached = float(binom.sf(self.correct - 1, self.labelled, guessing))
        so_few = float(binom.cdf(self.correct, self.labelled, (1 + guessing) / 2))
        return reached > _BY_CHANCE and so_few < _UNLUCKY

    @property
    def numbers(self) -> dict[str, float | None]:
        """The share of correct predictions under the name of what it is."""
        return {"accuracy" if self.exclusive else "most_probable_is_a_label": self.value}

    def told(self) -> str:
        """The accuracy in one line, which says what to check if it is no better than chance."""
        if self.value is None:
            return f"accuracy is not known; labels: {self.labels}"
        if not self.exclusive:
            return (
                f"the most probable class is a label of {self.correct:,} of {self.labelled:,} images "
                f"({self.value:.3f}); labels: {self.labels}"
            )
        found = f"accuracy {self.value:.3f} ({self.correct:,} of {self.labelled:,} labels)"
        if not self.is_chance:
            return f"{found}; labels: {self.labels}"
        return (
            f"warning: {found} is no better than chance, one in {self.classes:,} classes: check that the "
            "numbers of the labels are the model's (dataset.numbering, model.class_names), and that inputs "
            f"are prepared as for its training (model.resize, crop, mean, std); labels: {self.labels}"
        )


def are_right(samples: pa.Table) -> list[bool | None]:
    """Return whether the prediction of each sample is one of its labels; None without a label.

    Parameters
    ----------
    samples
        The columns ``label``, ``labels`` and ``prediction``. Runs of earlier versions have no lists.
    """
    columns = (samples[name].to_pylist() for name in ("label", "labels", "prediction"))
    known = (
        (labels or ([] if label is None else [label]), predicted)
        for label, labels, predicted in zip(*columns, strict=True)
    )
    return [predicted in labels if labels else None for labels, predicted in known]


def write_accuracy(run: Run) -> Accuracy | None:
    """Count the correct predictions of a run and write them to ``accuracy.json``; None without labels."""
    classes = run.manifest.num_classes
    if not run.manifest.labels or classes is None:
        return None
    labelled, correct, several = read_hits(run.root, run.shards)
    found = Accuracy(
        labelled=labelled,
        correct=correct,
        classes=classes,
        labels=run.manifest.labels,
        exclusive=run.manifest.exclusive and not several,
    )
    more = found.numbers | {"no_better_than_chance": found.is_chance if found.exclusive else None}
    write_json(run.accuracy, found.model_dump(exclude_defaults=True) | more)
    return found


def read_accuracy(run: Run) -> Accuracy | None:
    """Read ``accuracy.json``; None if there is none.

    Raises
    ------
    UnreadableError
        If the file is damaged; the message is one line.
    """
    if not is_there(run.accuracy):
        return None
    try:
        return Accuracy.model_validate(read_json(run.accuracy))
    except ValueError as error:  # also pydantic's
        raise UnreadableError(f"{run.accuracy} is damaged; run the job again to repair it") from error
