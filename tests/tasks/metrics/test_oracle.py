"""The true pixels of the demo's digits: the best map by any measure of localisation, and by insertion."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from explainers.base import Batch
from explainers.control_names import CONTROLS
from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec, load
from explainers.registry import explainers
from metric_toys import MetricBatch
from places import ROOT
from storage.datasets import digits
from tasks.metrics.base import Need
from tasks.metrics.preparation import prepare
from tasks.metrics.registry import metrics

COUNT = 64
SIZE = (digits.SIZE, digits.SIZE)


class Shape:
    """All that a control asks of a classifier."""

    input_shape = (3, *SIZE)


@cache
def known() -> MetricBatch:
    samples = [digits.sample("test", index) for index in range(COUNT)]
    return MetricBatch(
        inputs=torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2) / 255,
        targets=torch.tensor([s.label for s in samples]),
        seeds=torch.arange(COUNT),
        confidence=torch.ones(COUNT),
        boxes=[torch.tensor([s.box]) for s in samples],
        masks=torch.from_numpy(np.stack([s.mask for s in samples])),
    )


@cache
def maps_of(name: str) -> torch.Tensor:
    """(COUNT, H, W) prepared maps of a control, or of the oracle."""
    batch = known()
    if name == "oracle":
        raw = batch.masks.float()
    else:
        kind = explainers.get(name)
        raw = kind(Shape(), kind.Parameters()).explain(Batch(batch.inputs, batch.targets, batch.seeds)).maps
    return prepare(raw, SIZE)[0]


def dataset_scores(name: str, maps: torch.Tensor) -> dict[str, float]:
    """{column: number of the dataset} of a metric with default parameters."""
    kind = metrics.get(name)
    metric = kind(None, kind.Parameters())
    scores, found = metric.score(known(), maps), {}
    for column in metric.columns():
        if column.pooled:
            mean = scores.curves[column.name].double().mean(0, keepdim=True)
            found[column.name] = kind.of_mean_curve(column.name, mean).item()
        else:
            found[column.name] = scores.values[column.name].mean().item()
    return found


@cache
def seen_by_the_demos_classifier() -> tuple[Classifier, MetricBatch]:
    examples = ROOT / "examples"
    weights = examples / "weights" / "digits-gap.safetensors"
    spec = ModelSpec(source=f"{examples / 'digits.py'}:gap", weights=str(weights), layer="features")
    classifier = load(spec, input_size=SIZE)
    with torch.inference_mode():
        confidence, targets = classifier.logits(known().inputs).softmax(1).max(1)
    return classifier, replace(known(), targets=targets, confidence=confidence)


def faithfulness_scores(name: str, maps: torch.Tensor) -> dict[str, float]:
    """{column: mean} of a metric with default parameters, with the demo's classifier."""
    classifier, batch = seen_by_the_demos_classifier()
    kind = metrics.get(name)
    scores = kind(classifier, kind.Parameters()).score(batch, maps)
    return {column: values.nanmean().item() for column, values in scores.values.items()}


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(("name", "column"), [("insertion", "insertion"), ("road", "road_combined")])
def test_the_oracle_beats_every_control_where_what_is_hidden_leaves_no_shape(name, column, control):
    best, other = (faithfulness_scores(name, maps_of(one)) for one in ("oracle", control))
    assert best[column] > other[column] + 0.1


@pytest.mark.parametrize(
    ("name", "column", "sign"),
    [
        ("deletion", "deletion", -1),
        ("pixel_flipping", "aopc", 1),
        ("average_drop_in_deletion", "average_drop_in_deletion_100", 1),
    ],
)
def test_noise_is_as_good_as_the_oracle_where_a_hole_shows_the_object(name, column, sign):
    """As the metrics' docstrings say."""
    best, noise = (faithfulness_scores(name, maps_of(one))[column] for one in ("oracle", "random"))
    assert sign * noise > sign * best - 0.01
    assert "noise" in metrics.get(name).__doc__


LOCALISATION = [name for name in metrics.names() if metrics.get(name).needs & {Need.BOXES, Need.MASKS}]


def test_what_measures_localisation_is_known():
    assert set(LOCALISATION) >= {
        "pointing_game",
        "energy_pointing_game",
        "max_box_accuracy",
        "pixel_precision",
        "relevance_mass_accuracy",
        "relevance_rank_accuracy",
    }


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", LOCALISATION)
def test_the_oracle_wins_against_every_control(name, control):
    kind = metrics.get(name)
    best, other = (dataset_scores(name, maps_of(one)) for one in ("oracle", control))
    judged = [column for column in kind(None, kind.Parameters()).columns() if column.better]
    assert judged
    for column in judged:
        assert column.better == "higher"
        assert best[column.name] > other[column.name]
        assert best[column.name] > 0.98


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("max_box_accuracy", "max_box_acc"),
        ("max_box_accuracy", "max_box_acc_v2"),
        ("pixel_precision", "pxap"),
        ("pixel_precision", "pixel_precision"),
    ],
)
@pytest.mark.parametrize(("reference", "control"), [("center", "center_gaussian"), ("all_ones", "all_ones")])
def test_references_beside_the_oracle_are_what_the_controls_score(name, column, reference, control):
    beside = dataset_scores(name, maps_of("oracle"))[f"{column}_{reference}"]
    assert beside == pytest.approx(dataset_scores(name, maps_of(control))[column], abs=1e-6)
