"""Accuracy on labels, and when it is called chance: against sums over all outcomes."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import decomposed
from storage.samples import read_samples
from tasks.results.accuracy import Accuracy, read_accuracy, write_accuracy


def of(correct: int, labelled: int, classes: int) -> Accuracy:
    return Accuracy(labelled=labelled, correct=correct, classes=classes, labels="numbers")


@pytest.mark.parametrize(
    ("correct", "labelled", "classes", "chance"),
    [
        (0, 3, 1000, False),  # three photographs in a row that a good model does not know
        (0, 4, 1000, True),
        (74, 104, 1000, False),
        (1, 104, 1000, True),
        (3, 104, 1000, False),
        (5, 10, 2, True),
        (6, 10, 2, False),
        (10, 20, 2, True),
        (60, 100, 2, False),
        (104, 1000, 10, True),
        (0, 0, 10, False),
        (1, 1, 2, False),
        (0, 1, 2, False),
    ],
)
def test_cases_of_chance(correct: int, labelled: int, classes: int, chance: bool) -> None:
    found = of(correct, labelled, classes)
    assert found.is_chance is chance
    assert found.told().startswith("warning: accuracy") is chance


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 50))
def test_chance_is_two_tails_of_the_binomial_distribution(one: int, other: int, classes: int) -> None:
    correct, labelled = sorted((one, other))

    def probability(successes: int, rate: float) -> float:
        return comb(labelled, successes) * rate**successes * (1 - rate) ** (labelled - successes)

    reached = sum(probability(k, 1 / classes) for k in range(correct, labelled + 1))
    so_few = sum(probability(k, (1 + 1 / classes) / 2) for k in range(correct + 1))
    expected = labelled > 0 and reached > 0.05 and so_few < 0.1
    near = min(abs(reached - 0.05), abs(so_few - 0.1)) < 1e-9
    assert near or of(correct, labelled, classes).is_chance == expected


def test_a_perfect_model_is_never_called_chance() -> None:
    assert not any(of(n, n, classes).is_chance for n in range(200) for classes in (2, 3, 1000))


def test_it_counts_readable_images_with_a_label_and_is_read_back(tmp_path: Path) -> None:
    run = decomposed(tmp_path)
    found = write_accuracy(run)
    rows = [row for row in read_samples(run.root) if row["prediction"] is not None]
    assert found is not None
    assert (found.labelled, found.classes) == (5, 8)  # one of the six files is damaged
    assert found.correct == sum(row["label"] == row["prediction"] for row in rows) > 0
    assert read_accuracy(run) == found
    (run.root / "accuracy.json").write_text(json.dumps({"labelled": "many"}))
    with pytest.raises(ValueError, match=r"accuracy\.json is damaged; run the job again"):
        read_accuracy(run)


def test_labels_that_are_no_classes_of_the_model_have_no_accuracy(tmp_path: Path) -> None:
    found = Accuracy(labelled=0, correct=0, classes=8, labels="not the model's numbers: ...")
    assert found.value is None
    assert found.told() == "accuracy is not known; labels: not the model's numbers: ..."
