"""What holds for every registered metric."""

import pytest
import torch

from metric_toys import ToyClassifier, batch_of, random_inputs, random_maps, small_network
from rounding import OVER_CONFIDENCE
from tasks.metrics.base import Need
from tasks.metrics.registry import metrics

SIZE = (12, 10)
BOXES = [torch.tensor([[1.0, 2.0, 6.0, 8.0]])] * 4
MASKS = torch.zeros(4, *SIZE, dtype=torch.bool)
MASKS[:, 2:8, 1:6] = True


def scored(name: str, maps: torch.Tensor):
    classifier = ToyClassifier(small_network())
    kind = metrics.get(name)
    metric = kind(classifier, kind.Parameters())
    batch = batch_of(classifier, random_inputs(4, SIZE), BOXES, masks=MASKS)
    return metric.columns(), metric.score(batch, maps)


def test_the_metrics_of_this_package_are_registered_under_their_names():
    own = {"insertion", "deletion", "average_drop", "pointing_game", "energy_pointing_game", "sparseness"}
    assert own <= set(metrics.names())
    assert all(metrics.get(name).name == name for name in own)
    assert {name for name in own if Need.BOXES in metrics.get(name).needs} == {
        "pointing_game",
        "energy_pointing_game",
    }


@pytest.mark.parametrize("name", metrics.names())
def test_scores_are_the_declared_columns_in_the_declared_ranges(name):
    columns, scores = scored(name, random_maps(4, SIZE))
    assert list(scores.values) == [column.name for column in columns]
    assert set(scores.curves) <= set(scores.values)
    for column in columns:
        value = scores.values[column.name]
        assert value.shape == (4,)
        assert value.dtype == torch.float32
        assert column.better in {"higher", "lower", None}
        if column.pooled:
            assert value.isnan().all()
            mean = scores.curves[column.name].double().mean(0, keepdim=True)
            value = metrics.get(name).of_mean_curve(column.name, mean)
            assert value.shape == (1,)
        assert (value >= column.low).all()
        assert (value <= column.high).all()
    assert all(curve.shape[0] == 4 for curve in scores.curves.values())
    for column in columns:
        if column.better and column.name in scores.curves:
            kind = metrics.get(name)
            axes = kind.axes(column.name, kind.Parameters())
            points, rest = divmod(scores.curves[column.name].shape[1], len(axes.panels))
            assert rest == 0
            assert isinstance(axes.at, str) or len(axes.at) == points


@pytest.mark.parametrize("name", metrics.names())
def test_a_map_of_nan_has_no_value_in_any_column_and_changes_no_other_row(name):
    maps = random_maps(4, SIZE)
    columns, clean = scored(name, maps)
    maps[2] = torch.nan
    _, scores = scored(name, maps)
    for column in columns:
        of = "curves" if column.pooled else "values"
        value, before = (getattr(each, of)[column.name] for each in (scores, clean))
        assert value.view(4, -1).isnan().all(1).tolist() == [False, False, True, False]
        torch.testing.assert_close(value[[0, 1, 3]], before[[0, 1, 3]], atol=OVER_CONFIDENCE, rtol=0)


@pytest.mark.parametrize("name", metrics.names())
def test_scores_repeat_and_leave_the_maps_as_they_were(name):
    maps = random_maps(4, SIZE)
    before = maps.clone()
    _, first = scored(name, maps)
    _, second = scored(name, maps)
    assert torch.equal(maps, before)
    for column, value in second.values.items():
        torch.testing.assert_close(value, first.values[column], rtol=0, atol=0, equal_nan=True)


def test_no_two_metrics_give_a_column_of_the_same_name():
    classifier = ToyClassifier(small_network())
    kinds = [metrics.get(name) for name in metrics.names()]
    columns = [column.name for kind in kinds for column in kind(classifier, kind.Parameters()).columns()]
    assert len(columns) == len(set(columns))
