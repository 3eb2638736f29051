"""Pixel flipping against its definition, deletion and Quantus."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metric_toys import (
    LinearPixels,
    ToyClassifier,
    batch_of,
    random_inputs,
    random_maps,
    real_network_and_images,
    rows_of,
    small_network,
)
from rounding import SMALL_NETWORK
from tasks.metrics.insertion_deletion import Deletion, DeletionParameters
from tasks.metrics.pixel_flipping import PixelFlipping, PixelFlippingParameters

SIZE = (9, 7)


def metric(classifier, **parameters):
    return PixelFlipping(classifier, PixelFlippingParameters(**parameters))


def slow_points(classifier, image, target, saliency, steps, output):
    """One image, one pixel at a time, replaced by black."""
    order = np.argsort(-saliency.numpy().ravel())
    points = []
    for k in range(steps + 1):
        left = image.clone().flatten(1)
        left[:, order[: -(-k * order.size // steps)].copy()] = 0.0
        with torch.no_grad():
            logits = classifier.logits(left.view_as(image)[None])[0].double()
        points.append(float(logits[target] if output == "logit" else logits.softmax(0)[target]))
    return np.array(points)


@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("steps", [2, 9, 28])
def test_both_numbers_are_those_of_a_loop_over_images_and_steps(output, steps):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(5, SIZE), forwards=7)
    maps = random_maps(5, SIZE)
    scores = metric(classifier, steps=steps, output=output).score(batch, maps)
    for row in range(5):
        image, target = batch.inputs[row], int(batch.targets[row])
        points = slow_points(classifier, image, target, maps[row], steps, output)
        np.testing.assert_allclose(scores.curves["pixel_flipping"][row], points, atol=1e-5)
        np.testing.assert_allclose(scores.values["pixel_flipping"][row], points[1:].mean(), atol=1e-5)
        np.testing.assert_allclose(scores.values["aopc"][row], (points[0] - points).mean(), atol=1e-5)


def test_columns_say_what_they_replace_with_and_how_far_they_go():
    classifier = ToyClassifier(small_network())
    flipping, aopc = metric(classifier).columns()
    assert (flipping.low, flipping.high, flipping.better, flipping.fill) == (0, 1, "lower", "black")
    assert (aopc.low, aopc.high, aopc.better, aopc.fill) == (-1, 1, "higher", "black")
    infinite = float("inf")
    for column in metric(classifier, output="logit").columns():
        assert (column.low, column.high) == (-infinite, infinite)


def test_with_deletions_fill_it_is_deletion_but_for_the_ends_of_the_trapezoids():
    classifier = ToyClassifier(small_network())
    batch, maps = batch_of(classifier, random_inputs(4, SIZE)), random_maps(4, SIZE)
    scores = metric(classifier, fill="mean", steps=9).score(batch, maps)
    deletion = Deletion(classifier, DeletionParameters(fill="mean", steps=9)).score(batch, maps)
    points = scores.curves["pixel_flipping"]
    assert torch.equal(points, deletion.curves["deletion"])
    expected = deletion.values["deletion"] - (points[:, 0] - points[:, -1]) / 18
    torch.testing.assert_close(scores.values["pixel_flipping"], expected)


def test_what_a_class_has_to_begin_with_is_all_that_parts_the_two_numbers():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(4, SIZE))
    values = metric(classifier, steps=9).score(batch, random_maps(4, SIZE)).values
    torch.testing.assert_close(values["aopc"], 0.9 * (batch.confidence - values["pixel_flipping"]))


def linear():
    """A classifier whose logit is a sum of one term a pixel, against black, and those terms."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 8, 6, generator=generator) * 0.1
    classifier = ToyClassifier(LinearPixels(weight, 0.3), mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = torch.rand(1, 3, 8, 6, generator=generator)
    confidence = classifier.logits(inputs).softmax(1)[:, 1]
    batch = replace(batch_of(classifier, inputs), targets=torch.tensor([1]), confidence=confidence)
    return classifier, batch, (weight * inputs[0]).sum(0)


def test_the_logit_of_a_linear_model_falls_by_the_terms_in_their_order():
    classifier, batch, terms = linear()
    scores = metric(classifier, steps=12, output="logit").score(batch, terms[None])
    lost = torch.cat([torch.zeros(1), terms.flatten().sort(descending=True).values.cumsum(0)])[::4]
    expected = 0.3 + terms.sum() - lost
    torch.testing.assert_close(scores.curves["pixel_flipping"][0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.values["aopc"][0], lost.mean(), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 2**32), output=st.sampled_from(["probability", "logit"]))
@settings(max_examples=40, deadline=None)
def test_no_order_of_a_linear_models_pixels_beats_that_of_their_terms(seed, output):
    classifier, batch, terms = linear()
    scored = metric(classifier, steps=12, output=output)
    best = scored.score(batch, terms[None]).values
    other = scored.score(batch, random_maps(1, (8, 6), seed)).values
    assert best["pixel_flipping"] < other["pixel_flipping"]
    assert best["aopc"] > other["aopc"]


@given(power=st.sampled_from([0.5, 2.0, 3.0]), seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_only_the_order_of_a_maps_values_counts(power, seed):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(2, (6, 6)))
    maps = torch.randint(0, 5, (2, 6, 6), generator=torch.Generator().manual_seed(seed)) / 4
    scored = metric(classifier, steps=6)
    assert torch.equal(
        scored.score(batch, maps**power).values["aopc"], scored.score(batch, maps).values["aopc"]
    )


def test_a_classifier_that_looks_at_nothing_loses_nothing():
    classifier = ToyClassifier(LinearPixels(torch.zeros(3, *SIZE), 1.0))
    batch = batch_of(classifier, random_inputs(2, SIZE))
    values = metric(classifier).score(batch, random_maps(2, SIZE)).values
    torch.testing.assert_close(values["aopc"], torch.zeros(2))
    torch.testing.assert_close(values["pixel_flipping"], torch.tensor(1.0).sigmoid().expand(2))


def test_neither_batches_nor_chunks_change_a_score_and_flat_maps_have_the_seeds_order():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(5, SIZE))
    maps = (random_maps(5, SIZE) * 4).round() / 4
    maps[3], maps[4] = 0.0, 1.0
    scored = metric(classifier, steps=9)
    together = scored.score(batch, maps).values["aopc"]
    for rows in ([0], [3], [4, 1, 0]):
        apart = scored.score(rows_of(batch, rows, forwards=4), maps[rows]).values["aopc"]
        torch.testing.assert_close(apart, together[rows], atol=SMALL_NETWORK, rtol=0)
    flat = scored.score(batch, torch.ones_like(maps)).values["aopc"]
    assert torch.equal(flat, scored.score(batch, torch.zeros_like(maps)).values["aopc"])


def test_quantus_agrees_on_photographs_where_it_can_be_brought_to_replace_whole_pixels():
    """By default it does something else.

    - It replaces the 3 H W values of channels, not pixels; here the channels of a pixel share its saliency,
      and steps are of whole pixels.
    - Its check that steps divide the features counts the H W pixels all the same, so that no step of whole
      pixels is allowed at 32x32. Here a border is left out, which the network sees as black.
    - Its "black" is the least value of the array, whatever that is; here it is given 0.
    - Its curve begins after the first step, and its area is neither divided by the number of steps nor
      includes the input itself.
    """
    from quantus import PixelFlipping as Theirs

    network, images = real_network_and_images()
    classifier = ToyClassifier(nn.Sequential(nn.ZeroPad2d(1), network), mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, images[:, :, 1:-1, 1:-1].contiguous())
    maps = random_maps(len(images), (30, 30))
    scores = metric(classifier, steps=30).score(batch, maps)
    how = {"perturb_baseline": 0.0, "disable_warnings": True}
    targets = batch.targets.numpy()
    found = Theirs(features_in_step=3 * 30, **how)(
        classifier.network, batch.inputs.numpy(), targets, maps[:, None].numpy(), device="cpu"
    )
    with pytest.raises(AssertionError, match="modulo remainder"):
        Theirs(features_in_step=3 * 32, **how)(network, images.numpy(), targets, images[:, :1].numpy())
    np.testing.assert_allclose(scores.curves["pixel_flipping"][:, 1:], np.array(found), atol=1e-5)
    np.testing.assert_allclose(scores.values["pixel_flipping"], np.mean(found, 1), atol=1e-5)
    assert scores.values["aopc"].std() > 0.05


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"fill": "noise"}, {"output": "loss"}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        metric(None, **wrong)
