"""Mean curves and their intervals, against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

import made
from made import METRICS, NASTY, made_run, made_scores
from tasks.metrics.pixel_precision import PixelPrecision
from tasks.results.curve_bands import NEUTRAL, axes_of, bands_of


@pytest.mark.parametrize("targets", [1, 2])
def test_curves_have_the_mean_and_the_interval_of_students_t_over_images(
    tmp_path: Path, targets: int
) -> None:
    run = made_run(tmp_path / "run", {"gradcam": None, "random": None}, targets=targets)
    scores = made_scores(run)
    found = bands_of(run)
    assert set(found) == {"insertion", "deletion", "max_box_acc_v2", "pxap", NASTY}  # no reference column
    for column, panels in (("insertion", 1), ("max_box_acc_v2", 3)):
        for explainer in run.explainers:
            curves = scores[explainer][column][1]
            assert curves is not None
            split = [own[~np.isnan(own[:, 0])] for own in np.split(curves.astype(float), run.rows)]
            images = [own.mean(0) for own in split if len(own)]
            bands = found[column][explainer]
            assert len(bands) == panels
            assert {band.images for band in bands} == {len(images)}
            interval = ttest_1samp(images, 0).confidence_interval(0.95)
            mean, low, high = (
                np.concatenate([getattr(b, k) for b in bands]) for k in ("mean", "low", "high")
            )
            np.testing.assert_allclose(mean, np.mean(images, 0))
            np.testing.assert_allclose(low, np.clip(interval.low, 0, 1))
            np.testing.assert_allclose(high, np.clip(interval.high, 0, 1))
    np.testing.assert_allclose(found["insertion"]["gradcam"][0].x, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found["max_box_acc_v2"]["gradcam"][2].x, [0, 0.25, 0.5, 0.75])


def test_histograms_become_precision_against_recall_whose_area_is_pxap(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", {"gradcam": None}, images=30)
    curves = made_scores(run)["gradcam"]["pxap"][1]
    assert curves is not None
    curves = curves[~np.isnan(curves[:, 0])].astype(float)
    (band,) = bands_of(run)["pxap"]["gradcam"]
    area = (np.diff(band.x, prepend=0) * band.mean).sum()
    whole = PixelPrecision.of_mean_curve("pxap", torch.from_numpy(curves.mean(0, keepdims=True)))
    assert area == pytest.approx(float(whole[0]))
    assert band.x[-1] == 1
    # The precision above the second highest threshold, image by image, by the bootstrap.
    inside, taken = curves[:, 3:5].sum(1), curves[:, [3, 4, 8, 9]].sum(1)
    assert band.mean[1] == pytest.approx(inside.sum() / taken.sum())
    drawn = np.random.default_rng(0).integers(len(curves), size=(20_000, len(curves)))
    spread = (inside[drawn].sum(1) / taken[drawn].sum(1)).std()
    assert (band.high - band.low)[1] / 2 == pytest.approx(2.06 * spread, rel=0.1)


def test_a_single_image_has_no_interval_and_a_plug_in_neutral_axes(tmp_path: Path) -> None:
    own = {"elsewhere:Metric": METRICS["insertion"]}
    run = made_run(tmp_path / "run", {"gradcam": None}, images=1, metrics=own)
    made_scores(run, seed=1)
    assert axes_of(run, "insertion") == NEUTRAL
    (band,) = bands_of(run)["insertion"]["gradcam"]
    assert np.isfinite(band.mean).all()
    assert np.isnan(band.low).all()


def test_metrics_that_are_not_known_or_had_other_parameters_get_neutral_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = made_run(tmp_path / "gone", {"gradcam": None}, metrics={"uninstalled": METRICS["insertion"]})
    assert axes_of(gone, "insertion") == NEUTRAL
    monkeypatch.setitem(made.PARAMETERS, "insertion", {"renamed": 3})
    assert axes_of(made_run(tmp_path / "old", {"gradcam": None}), "insertion") == NEUTRAL


def test_the_axes_name_the_sites_of_the_inputs(tmp_path: Path) -> None:
    told = []
    for kind, shape in (("image", (3, 8, 8)), ("text", (2, 8))):
        run = made_run(tmp_path / kind, {"gradcam": None}, modality=kind, input_shape=shape)
        told.append(axes_of(run, "deletion").x)
    assert told == ["share of pixels deleted", "share of tokens deleted"]
