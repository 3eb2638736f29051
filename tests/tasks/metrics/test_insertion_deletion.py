"""Insertion and deletion against the definition, one image and one step at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from torch import nn

from metric_toys import (
    MEAN,
    STD,
    LinearPixels,
    ToyClassifier,
    batch_of,
    random_inputs,
    random_maps,
    rows_of,
    small_network,
)
from rounding import SMALL_NETWORK, rounding
from tasks.metrics.insertion_deletion import Deletion, DeletionParameters, Insertion, InsertionParameters

SIZE = (18, 14)
METRICS = {"insertion": (Insertion, InsertionParameters), "deletion": (Deletion, DeletionParameters)}


def metric(name, classifier, **parameters):
    kind, parameter_class = METRICS[name]
    return kind(classifier, parameter_class(**parameters))


def rise_kernel():
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    return gaussian_filter(impulse, 5)


def slow_fill(kind: str, normalised: np.ndarray) -> np.ndarray:
    """(3, H, W) in normalised space."""
    if kind == "mean":
        return np.zeros_like(normalised)
    if kind == "black":
        return np.broadcast_to(
            -np.array(MEAN)[:, None, None] / np.array(STD)[:, None, None], normalised.shape
        )
    return np.stack([convolve2d(channel, rise_kernel(), mode="same") for channel in normalised])


def slow_curve(name, network: nn.Module, image, target: int, saliency, fill: str, steps: int) -> list[float]:
    """RISE's loop: a list of pixels, changed some at a time in one normalised image."""
    normalised = ((image.numpy() - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]).astype(
        float
    )
    substrate = slow_fill(fill, normalised)
    current, goal = (substrate, normalised) if name == "insertion" else (normalised, substrate)
    current = current.reshape(3, -1).copy()
    order = np.argsort(-saliency.numpy().ravel())
    counts = [int(np.ceil(k * order.size / steps)) for k in range(steps + 1)]
    composites = []
    for k, count in enumerate(counts):
        changed = order[counts[max(0, k - 1)] : count]
        current[:, changed] = goal.reshape(3, -1)[:, changed]
        composites.append(current.reshape(image.shape).copy())
    with torch.no_grad():
        logits = network(torch.from_numpy(np.stack(composites)).float()).double().numpy()
    return list(np.exp(logits[:, target]) / np.exp(logits).sum(1))


# A pixel is blurred by 11 products down and 11 across.
BLURRED = SMALL_NETWORK + rounding(11 + 11)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("fill", ["blur", "mean", "black"])
@pytest.mark.parametrize("steps", [2, 9, 12])
def test_curves_and_areas_equal_a_loop_over_images_and_steps(name, fill, steps):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(4, SIZE), forwards=7)
    maps = random_maps(4, SIZE)
    scores = metric(name, classifier, fill=fill, steps=steps).score(batch, maps)
    expected = np.array(
        [
            slow_curve(name, classifier.network, *one, fill, steps)
            for one in zip(batch.inputs, batch.targets.tolist(), maps, strict=True)
        ]
    )
    assert expected.shape == (4, steps + 1)
    np.testing.assert_allclose(scores.curves[name], expected, atol=BLURRED)
    areas = (expected.sum(1) - expected[:, 0] / 2 - expected[:, -1] / 2) / steps
    np.testing.assert_allclose(scores.values[name], areas, atol=BLURRED)


def test_every_curve_has_a_point_a_step_though_the_steps_do_not_divide_the_input():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(2, (8, 8)))
    maps = random_maps(2, (8, 8))
    curves = metric("deletion", classifier, steps=28).score(batch, maps).curves["deletion"]
    expected = [
        slow_curve("deletion", classifier.network, *one, "mean", 28)
        for one in zip(batch.inputs, batch.targets.tolist(), maps, strict=True)
    ]
    assert curves.shape == (2, 29)  # 64 pixels, two or three at a time
    np.testing.assert_allclose(curves, expected, atol=BLURRED)


def test_default_fills_and_directions_are_rises():
    classifier = ToyClassifier(small_network())
    (insertion,) = metric("insertion", classifier).columns()
    (deletion,) = metric("deletion", classifier).columns()
    assert (insertion.better, deletion.better) == ("higher", "lower")
    assert "blurred" in insertion.fill
    assert "mean" in deletion.fill
    batch = batch_of(classifier, random_inputs(2, (32, 32)))
    assert metric("insertion", classifier).score(batch, random_maps(2, (32, 32))).curves[
        "insertion"
    ].shape == (2, 29)


def linear(bias: float = 0.3):
    """A classifier whose logit is a sum of one term a pixel, an input, and those terms against the mean."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 8, 6, generator=generator) * 0.1
    classifier = ToyClassifier(LinearPixels(weight, bias))
    inputs = torch.rand(1, 3, 8, 6, generator=generator)
    terms = (weight * (inputs[0] - classifier.mean) / classifier.std).sum(0)
    batch = batch_of(classifier, inputs)
    if batch.targets[0] == 0:
        terms, bias = -terms, -bias
    return classifier, batch, terms, bias


@pytest.mark.parametrize("name", METRICS)
def test_a_linear_models_curve_is_the_sigmoid_of_the_terms_that_are_left(name):
    classifier, batch, terms, bias = linear()
    descending = terms.flatten().sort(descending=True).values
    summed = torch.cat([torch.zeros(1), descending.cumsum(0)])[::4]
    logits = bias + (summed if name == "insertion" else terms.sum() - summed)
    scores = metric(name, classifier, fill="mean", steps=12).score(batch, terms[None])
    torch.testing.assert_close(scores.curves[name][0], logits.sigmoid(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        scores.values[name][0], torch.trapezoid(logits.sigmoid(), dx=1 / 12), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", METRICS)
def test_a_linear_models_logit_is_the_sum_of_the_terms_that_are_left(name):
    classifier, batch, terms, bias = linear()
    batch = batch_of(classifier, batch.inputs.expand(3, -1, -1, -1))
    if batch.targets[0] == 0:  # whose logit is 0 whatever is left
        terms, bias = torch.zeros_like(terms), 0.0
    descending = terms.flatten().sort(descending=True).values
    summed = torch.cat([torch.zeros(1), descending.cumsum(0)])[::4]
    logits = bias + (summed if name == "insertion" else terms.sum() - summed)
    scored = metric(name, classifier, fill="mean", steps=12, output="logit")
    scores = scored.score(batch, terms.expand(3, -1, -1))
    torch.testing.assert_close(scores.curves[name], logits.expand(3, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.values[name][0], torch.trapezoid(logits, dx=1 / 12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("fill", ["blur", "mean", "black"])
def test_logits_that_are_log_probabilities_give_the_logarithm_of_the_other_curve(name, fill):
    network = nn.Sequential(small_network(), nn.LogSoftmax(1))
    classifier = ToyClassifier(network)
    batch, maps = batch_of(classifier, random_inputs(4, SIZE), forwards=7), random_maps(4, SIZE)
    logits, probabilities = (
        metric(name, classifier, fill=fill, steps=9, output=output).score(batch, maps).curves[name]
        for output in ("logit", "probability")
    )
    torch.testing.assert_close(logits.exp(), probabilities, atol=SMALL_NETWORK, rtol=0)


@pytest.mark.parametrize("name", METRICS)
def test_an_area_under_logits_has_no_bounds(name):
    classifier = ToyClassifier(small_network())
    ranges = {
        output: (column.low, column.high)
        for output in ("probability", "logit")
        for column in metric(name, classifier, output=output).columns()
    }
    assert ranges == {"probability": (0.0, 1.0), "logit": (-float("inf"), float("inf"))}


def test_no_ranking_of_a_linear_model_beats_the_ranking_by_its_terms():
    classifier, batch, terms, _ = linear()
    others = random_maps(60, (8, 6), seed=9)
    best, rest = (
        {
            name: torch.cat(
                [
                    metric(name, classifier, fill="mean", steps=12).score(batch, one[None]).values[name]
                    for one in maps
                ]
            )
            for name in METRICS
        }
        for maps in (terms[None], others)
    )
    assert best["insertion"] > rest["insertion"].max()
    assert best["deletion"] < rest["deletion"].min()


def test_deletion_is_insertion_of_the_least_salient_first_read_backwards():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE))
    maps = random_maps(3, SIZE)
    deletion = metric("deletion", classifier, fill="blur", steps=9).score(batch, maps).curves["deletion"]
    insertion = (
        metric("insertion", classifier, fill="blur", steps=9).score(batch, 1 - maps).curves["insertion"]
    )
    torch.testing.assert_close(deletion.flip(1), insertion, atol=SMALL_NETWORK, rtol=0)


@pytest.mark.parametrize("name", METRICS)
def test_the_whole_input_is_not_run_again_and_a_common_fill_only_once(name):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(5, SIZE), forwards=16)
    curves = {}
    for fill, rows in (("mean", 5 * 8 + 1), ("black", 5 * 8 + 1), ("blur", 5 * 9)):
        classifier.rows = classifier.largest = 0
        curves[fill] = (
            metric(name, classifier, fill=fill, steps=9).score(batch, random_maps(5, SIZE)).curves[name]
        )
        assert classifier.rows == rows
        assert classifier.largest <= 16
        assert torch.equal(curves[fill][:, -1 if name == "insertion" else 0], batch.confidence)


@pytest.mark.parametrize("name", METRICS)
def test_neither_chunk_size_nor_a_full_device_changes_a_score(name):
    network = small_network()
    inputs, maps = random_inputs(4, SIZE), random_maps(4, SIZE)

    def curves(forwards, memory=None):
        classifier = ToyClassifier(network, memory=memory)
        batch = batch_of(classifier, inputs, forwards=forwards)
        return metric(name, classifier, steps=9).score(batch, maps).curves[name]

    whole = curves(1000)
    for forwards, memory in ((1, None), (5, None), (8, None), (64, None), (64, 3), (1000, 1)):
        torch.testing.assert_close(curves(forwards, memory), whole, atol=SMALL_NETWORK, rtol=0)


@pytest.mark.parametrize("name", METRICS)
def test_a_batch_scores_as_its_images_one_by_one_in_any_order(name):
    classifier = ToyClassifier(small_network())
    maps = (random_maps(5, SIZE) * 4).round() / 4  # many ties
    batch = batch_of(classifier, random_inputs(5, SIZE))
    scored = metric(name, classifier, steps=9)
    together = scored.score(batch, maps).curves[name]
    for rows in ([0], [3], [4, 1, 0]):
        apart = scored.score(rows_of(batch, rows), maps[rows]).curves[name]
        torch.testing.assert_close(apart, together[rows], atol=SMALL_NETWORK, rtol=0)


@pytest.mark.parametrize("name", METRICS)
def test_flat_maps_are_scored_in_the_seeds_order_and_repeat(name):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(1, SIZE).expand(6, 3, *SIZE))
    flat = torch.ones(6, *SIZE)
    scored = metric(name, classifier, steps=9)
    values = scored.score(batch, flat).values[name]
    assert torch.equal(scored.score(batch, flat).values[name], values)
    assert len(set(values.tolist())) == 6


@pytest.mark.parametrize("name", METRICS)
@given(power=st.sampled_from([0.5, 2.0, 3.0]), seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_only_the_order_of_a_maps_values_counts(name, power, seed):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(2, (6, 6)))
    maps = torch.randint(0, 5, (2, 6, 6), generator=torch.Generator().manual_seed(seed)) / 4
    scored = metric(name, classifier, steps=6)
    assert torch.equal(scored.score(batch, maps**power).curves[name], scored.score(batch, maps).curves[name])


@pytest.mark.parametrize("name", METRICS)
def test_a_map_of_nan_has_no_score_and_changes_no_other(name):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE))
    maps = random_maps(3, SIZE)
    scored = metric(name, classifier, steps=9)
    clean = scored.score(batch, maps)
    maps[1] = torch.nan
    scores = scored.score(batch, maps)
    assert scores.values[name].isnan().tolist() == [False, True, False]
    assert scores.curves[name][1].isnan().all()
    assert torch.equal(scores.curves[name][[0, 2]], clean.curves[name][[0, 2]])


def test_the_blurred_fill_stays_within_the_range_of_inputs():
    seen = []
    classifier = ToyClassifier(small_network())
    logits = classifier.logits
    classifier.logits = lambda inputs: seen.append(inputs) or logits(inputs)
    inputs = (random_inputs(2, SIZE) > 0.5).float()
    metric("insertion", classifier, steps=2).score(batch_of(classifier, inputs), random_maps(2, SIZE))
    assert all(0 <= one.min() <= one.max() <= 1 for one in seen)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("wrong", [{"steps": 1}, {"fill": "noise"}, {"stepz": 28}, {"output": "loss"}])
def test_wrong_parameters_are_refused(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        metric(name, None, **wrong)
