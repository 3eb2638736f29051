"""Scores by class, against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from made import NASTY, made_run, made_samples, made_scores
from tasks.results import class_scores as module
from tasks.results.class_scores import class_scores


@pytest.mark.parametrize("targets", [1, 2])
def test_means_and_intervals_are_those_of_the_images_of_a_class(tmp_path: Path, targets: int) -> None:
    run = made_run(tmp_path / "run", {"gradcam": None, "random": None}, images=30, targets=targets)
    scores, classes = made_scores(run), made_samples(run)
    found = class_scores(run, "insertion")
    counts = {c: int((classes == c).sum()) for c in set(classes.tolist()) - {-1}}
    assert found.classes == sorted(counts, key=lambda c: (-counts[c], c))
    assert found.there == len(counts)
    for e, explainer in enumerate(run.explainers):
        values = scores[explainer]["insertion"][0]
        for c, number in enumerate(found.classes):
            own = values[(classes == number) & ~np.isnan(values)]
            interval = ttest_1samp(own, 0).confidence_interval(0.95)
            assert found.mean[e, c] == pytest.approx(own.mean())
            assert found.low[e, c] == pytest.approx(max(0, interval.low))
            assert found.high[e, c] == pytest.approx(min(1, interval.high))


def test_the_classes_of_most_images_are_kept_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CLASSES", 2)
    run = made_run(tmp_path / "run", {"gradcam": None}, images=12)
    made_scores(run)
    made_samples(run, classes=[5, 0, 0, 5, 0, 2, 0, 2, 5, 1, -1, 2], names={0: NASTY, 1: "one"})
    found = class_scores(run, "insertion")
    # 2 and 5 have as many images, and the smaller number comes first. 2 has the name of its label only.
    assert (found.classes, found.names, found.there) == ([0, 2], [NASTY, "label 2"], 4)


def test_a_class_with_one_score_has_no_interval_and_one_without_any_no_mean(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", {"gradcam": None}, images=8)
    values = made_scores(run)["gradcam"]["insertion"][0]
    known, lost = np.flatnonzero(~np.isnan(values))[0], np.flatnonzero(np.isnan(values))[0]
    classes = np.full(8, 4)
    classes[known], classes[lost] = 6, 7
    made_samples(run, classes=classes.tolist())
    found = class_scores(run, "insertion")
    assert found.classes == [4, 6, 7]
    assert found.mean[0, 1] == values[known]
    assert np.isnan([found.low[0, 1], found.mean[0, 2], found.high[0, 2]]).all()
