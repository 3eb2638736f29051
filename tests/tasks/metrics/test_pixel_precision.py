"""Average precision of pixels: closed forms, and scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from explainers.controls import center_gaussian
from metric_toys import MetricBatch, random_maps
from tasks.metrics.pixel_precision import (
    PixelPrecision,
    PixelPrecisionParameters,
    average_precision,
    histograms,
)
from tasks.metrics.preparation import prepare

SIZE = (12, 10)


def batch(masks) -> MetricBatch:
    return MetricBatch(
        inputs=torch.zeros(len(masks), 3, *SIZE),
        targets=torch.zeros(len(masks), dtype=torch.int64),
        seeds=torch.arange(len(masks)),
        confidence=torch.ones(len(masks)),
        boxes=[torch.zeros(0, 4)] * len(masks),
        masks=masks,
    )


def scored(maps, masks, bins=100):
    return PixelPrecision(None, PixelPrecisionParameters(bins=bins)).score(batch(masks), maps)


def of_dataset(scores, column="pxap") -> float:
    mean = scores.curves[column].double().nanmean(0, keepdim=True)
    return float(PixelPrecision.of_mean_curve(column, mean)[0])


def random_masks(count: int, seed: int = 5) -> torch.Tensor:
    """Of different sizes, none empty."""
    masks = torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed))
    return masks < torch.linspace(0.1, 0.6, count)[:, None, None]


@pytest.mark.parametrize(
    ("values", "objects", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], 1.0),
        ([0.9, 0.8, 0.7, 0.1], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
        ([0.9, 0.9, 0.7, 0.1], [1, 0, 1, 0], (1 / 2 + 2 / 3) / 2),  # a tie enters at once
        ([1.0, 1.0, 1.0, 1.0], [1, 0, 0, 0], 0.25),
        ([0.0, 0.0, 0.0, 0.0], [1, 1, 1, 0], 0.75),
    ],
)
def test_known_orders_have_their_known_precision(values, objects, expected):
    values, objects = torch.tensor([values]), torch.tensor([objects]).bool()
    assert average_precision(values, objects).item() == pytest.approx(expected)
    counts = histograms(values, objects, 10).double()
    assert PixelPrecision.of_mean_curve("pxap", counts).item() == pytest.approx(expected)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_images_score_as_by_scikit_learn_with_and_without_ties(count, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (3, count), generator=generator) / levels
    objects = torch.rand(3, count, generator=generator) < 0.4
    objects[:, 0] = True
    expected = [average_precision_score(o, v) for v, o in zip(values, objects, strict=True)]
    np.testing.assert_allclose(average_precision(values, objects), expected, atol=1e-6)


@pytest.mark.parametrize("bins", [2, 7, 100])
def test_the_dataset_scores_as_all_its_pixels_in_one_by_scikit_learn(bins):
    maps, masks = random_maps(8, SIZE) ** 2, random_masks(8)
    binned = (maps * bins).floor().clamp(max=bins - 1)
    expected = average_precision_score(masks.flatten(), binned.flatten())
    assert of_dataset(scored(maps, masks, bins)) == pytest.approx(expected, abs=1e-9)


def test_a_curve_is_the_pixels_of_the_object_in_each_bin_and_then_the_others():
    maps, masks = random_maps(4, SIZE), random_masks(4)
    curve = scored(maps, masks, 10).curves["pxap"]
    for row in range(4):
        inside, outside = (
            np.histogram(maps[row][chosen], bins=10, range=(0, 1))[0] for chosen in (masks[row], ~masks[row])
        )
        assert curve[row].tolist() == [*inside, *outside]


def test_the_precision_of_the_dataset_is_no_mean_over_images():
    """Each map is perfect, but one's object is as low as the other's ground, and thresholds are common."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[:, :6] = True
    maps = torch.where(
        masks, torch.tensor([1.0, 0.5])[:, None, None], torch.tensor([0.6, 0.0])[:, None, None]
    )
    scores = scored(maps, masks)
    assert scores.values["pixel_precision"].tolist() == [1.0, 1.0]
    assert of_dataset(scores) == pytest.approx((1 + 2 / 3) / 2)


def test_the_mask_itself_is_perfect_and_its_inverse_the_worst():
    masks = random_masks(5)
    scores = scored(masks.float(), masks)
    assert of_dataset(scores) == 1.0
    assert scores.values["pixel_precision"].tolist() == [1.0] * 5
    worst = scored((~masks).float(), masks)
    other = scored(random_maps(5, SIZE), masks)
    assert of_dataset(worst) < of_dataset(other) < 1.0


def test_flat_maps_score_the_objects_share_of_the_pixels():
    masks = random_masks(4)
    for maps in (torch.zeros(4, *SIZE), torch.ones(4, *SIZE)):
        scores = scored(maps, masks)
        shares = masks.float().mean((1, 2))
        torch.testing.assert_close(scores.values["pixel_precision"], shares)
        torch.testing.assert_close(scores.values["pixel_precision_all_ones"], shares)
        share = pytest.approx(float(masks.double().mean()), abs=1e-9)
        assert (of_dataset(scores), of_dataset(scores, "pxap_all_ones")) == (share, share)


def test_noise_scores_the_objects_share_on_average():
    masks = random_masks(1).expand(400, *SIZE)
    scores = scored(random_maps(400, SIZE), masks)
    assert of_dataset(scores) == pytest.approx(float(masks.float().mean()), abs=0.01)


def test_the_centre_of_reference_is_what_the_control_scores():
    masks = random_masks(4)
    center = prepare(center_gaussian(SIZE, 0.25).expand(4, *SIZE), SIZE)[0]
    scores = scored(center, masks)
    torch.testing.assert_close(scores.curves["pxap"], scores.curves["pxap_center"])
    torch.testing.assert_close(scores.values["pixel_precision"], scores.values["pixel_precision_center"])
    assert of_dataset(scores) != of_dataset(scores, "pxap_all_ones")


def test_only_the_order_of_a_maps_values_counts_for_an_image():
    maps, masks = random_maps(4, SIZE), random_masks(4)
    squared = scored(maps**2, masks).values["pixel_precision"]
    torch.testing.assert_close(scored(maps, masks).values["pixel_precision"], squared)


def test_a_batch_scores_as_its_images_one_by_one():
    maps, masks = random_maps(5, SIZE), random_masks(5)
    together = scored(maps, masks)
    for rows in ([0], [4, 2]):
        apart = scored(maps[rows], masks[rows])
        for name, value in together.values.items():
            torch.testing.assert_close(apart.values[name], value[rows], rtol=0, atol=0, equal_nan=True)
        assert all(torch.equal(apart.curves[name], together.curves[name][rows]) for name in together.curves)


def test_images_without_a_mask_and_maps_of_nan_have_no_score_and_count_for_nothing():
    maps, masks = random_maps(4, SIZE), random_masks(4)
    alone = of_dataset(scored(maps[[0, 3]], masks[[0, 3]]))
    masks[1], maps[2] = False, math.nan
    scores = scored(maps, masks)
    for found in (
        *scores.curves.values(),
        *(scores.values[n] for n in scores.values if n not in scores.curves),
    ):
        assert found.view(4, -1).isnan().all(1).tolist() == [False, True, True, False]
    assert of_dataset(scores) == pytest.approx(alone, abs=1e-9)


def test_a_batch_without_any_mask_has_no_score():
    given_ = batch(random_masks(2))
    bare = MetricBatch(given_.inputs, given_.targets, given_.seeds, given_.confidence, given_.boxes)
    scores = PixelPrecision(None, PixelPrecisionParameters()).score(bare, random_maps(2, SIZE))
    assert all(found.isnan().all() for found in (*scores.values.values(), *scores.curves.values()))


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"bins": 5000}, {"bin": 10}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PixelPrecisionParameters(**wrong)


def test_ignored_pixels_are_left_out_of_images_and_of_the_dataset():
    maps, masks = random_maps(4, SIZE), random_masks(4)
    ignored = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(9)) < 0.4
    masks &= ~ignored
    found = PixelPrecision(None, PixelPrecisionParameters(bins=1000)).score(
        replace(batch(masks), ignored=ignored), maps
    )
    counted = [(maps[i][~ignored[i]], masks[i][~ignored[i]]) for i in range(4)]
    for i, (values, objects) in enumerate(counted):
        wanted = average_precision_score(objects, values)
        assert found.values["pixel_precision"][i].item() == pytest.approx(wanted, abs=1e-6)
        share = objects.float().mean().item()
        assert found.values["pixel_precision_all_ones"][i].item() == pytest.approx(share, abs=1e-6)
    bins = (torch.cat([values for values, _ in counted]) * 1000).long().clamp(max=999)
    objects = torch.cat([objects for _, objects in counted])
    assert of_dataset(found) == pytest.approx(average_precision_score(objects, bins), abs=1e-6)
    assert of_dataset(found, "pxap_all_ones") == pytest.approx(objects.float().mean().item(), abs=1e-6)
    assert found.curves["pxap_center"].sum(1).tolist() == (~ignored).flatten(1).sum(1).tolist()
