"""On the demo's digits the true pixels of the digit are the best map, whatever measures localisation."""

from functools import cache

import numpy as np
import pytest
import torch

from explainers.base import Batch
from explainers.controls import CONTROLS
from explainers.registry import explainers
from metric_toys import MetricBatch
from storage import digits
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
