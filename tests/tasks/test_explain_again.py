"""The explainer once more, as metrics run it: on the run's inputs, other classes, and other networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from runs import explained, prepared, scores_of, tiny_job
from storage.maps import read
from storage.query import query
from storage.run import Run
from tasks.explain_again import ExplainAgain
from tasks.metrics.preparation import prepare
from tasks.metrics.random_weights import with_random_weights
from tasks.run_parts import classifier_of, explain_again, explainer_of
from tasks.scores import scores
from tasks.shard_reader import ShardReader
from tasks.shard_rows import targets_and_seeds

IMAGES = 7
# One that reads cached activations, one that takes gradients on pixels, one that draws random numbers, and
# one of the predicted class only.
EXPLAINERS = ("gradcam", "input_x_gradient", "smoothgrad", "ddcam")
METRICS = ({"name": "sensitivity", "samples": 2}, {"name": "randomisation", "stages": 3})


def run_of(store: Path, batch: int) -> Run:
    job = tiny_job(
        store,
        dataset={"kind": "digits", "limit": IMAGES},
        explainers=[{"name": name} | ({"samples": 4} if name == "smoothgrad" else {}) for name in EXPLAINERS],
        metrics=[*METRICS, {"name": "random_logit"}, {"name": "sparseness"}],
        batch={"shard": 4, "images": batch},
    )
    return explained(prepared(job))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("again") / "run", 3)


def shard_of(run: Run, name: str, shard: int = 0) -> tuple[ExplainAgain, Tensor, Tensor, Tensor]:
    """The explainer again, with the inputs, targets and prepared maps of a shard."""
    classifier = classifier_of(run)
    start, stop = run.rows_of(shard)
    targets, seeds = (torch.from_numpy(each) for each in targets_and_seeds(run, shard, "saliency"))
    each = np.arange(stop - start) // run.targets_per_image
    inputs = classifier.inputs_of(torch.from_numpy(ShardReader(run, run.inputs, shard).rows(each)))
    maps = torch.from_numpy(read(run.saliency(name) / "maps", start, stop))
    explainer = explainer_of(run, name, classifier)
    again = explain_again(run, name, explainer, classifier, targets, seeds)
    return again, inputs, targets, prepare(maps, run.input_size)[0]


@pytest.mark.parametrize("name", EXPLAINERS)
@torch.inference_mode()
def test_unaltered_inputs_have_the_maps_of_the_run_once_more(run: Run, name: str) -> None:
    for shard in range(run.shards):
        again, inputs, _, maps = shard_of(run, name, shard)
        rows = torch.arange(len(inputs))
        torch.testing.assert_close(again(inputs, rows), maps, atol=1e-5, rtol=0)
        backwards = rows.flip(0)
        torch.testing.assert_close(again(inputs[backwards], backwards), maps[backwards], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gradcam", "input_x_gradient"])
@torch.inference_mode()
def test_other_inputs_classes_and_networks_have_other_maps_and_change_nothing(run: Run, name: str) -> None:
    again, inputs, targets, maps = shard_of(run, name)
    rows, classifier = torch.arange(len(inputs)), classifier_of(run)
    fingerprint = classifier.fingerprint
    classes = classifier.num_classes
    others = [
        again(1 - inputs, rows),
        again(inputs, rows, targets=(targets + 1) % classes),
        again(inputs, rows, classifier=with_random_weights(classifier, range(2))),
    ]
    for other in others:
        assert other.isfinite().all()
        assert ((other - maps).abs().flatten(1).amax(1) > 0.05).all()
    torch.testing.assert_close(again(inputs, rows), maps, atol=1e-5, rtol=0)
    del vars(classifier)["fingerprint"]
    assert classifier.fingerprint == fingerprint


@torch.inference_mode()
def test_an_explainer_of_the_prediction_fails_where_another_class_is_predicted(run: Run) -> None:
    again, inputs, targets, _ = shard_of(run, "ddcam")
    rows, classifier = torch.arange(len(inputs)), classifier_of(run)
    assert again(inputs, rows, targets=(targets + 1) % classifier.num_classes).isnan().all()


def test_metrics_that_explain_again_score_a_run_the_same_in_batches_of_any_size(
    run: Run, tmp_path: Path
) -> None:
    other = run_of(tmp_path / "run", 16)
    for each in (run, other):
        for shard in range(each.shards):
            for name in each.explainers:
                scores.fn(str(each.root), shard, name)
    found, in_other_batches = scores_of(run.root), scores_of(other.root)
    assert found.keys() == in_other_batches.keys()
    for key, (value, _) in found.items():
        expected = in_other_batches[key][0]
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-4)), key

    def mean(explainer: str, metric: str) -> float | None:
        sql = f"SELECT avg(value) AS mean FROM scores WHERE explainer = '{explainer}' AND metric = '{metric}'"
        return query(run.root, sql).to_pylist()[0]["mean"]

    for control in ("center_gaussian", "sobel", "random"):
        assert mean(control, "randomisation") == 1
        assert mean(control, "randomisation_ssim") == 1
        assert mean(control, "random_logit") == 1
    assert mean("center_gaussian", "max_sensitivity") == mean("random", "max_sensitivity") == 0
    assert mean("sobel", "max_sensitivity") > 0
    assert mean("all_ones", "max_sensitivity") == 0
    assert mean("all_ones", "randomisation") is None  # no order to be kept
    for metric in ("randomisation", "randomisation_ssim", "random_logit", "random_logit_ssim"):
        assert mean("ddcam", metric) is None
        assert mean("gradcam", metric) < 0.95
        assert mean("input_x_gradient", metric) < 0.95
    assert mean("input_x_gradient", "average_sensitivity") > 0
    curves = query(
        run.root, "SELECT curve FROM scores WHERE metric = 'randomisation' AND explainer = 'gradcam'"
    )
    assert all(len(row["curve"]) == 3 for row in curves.to_pylist())
