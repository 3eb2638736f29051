"""The smallest sufficient share, against loops and on classifiers whose share is known."""

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
    rows_of,
    small_network,
)
from sequences import Words, metric_batch_of, texts
from tasks.metrics.minimal_sufficient_fraction import (
    MinimalSufficientFraction,
    MinimalSufficientFractionParameters,
)
from tasks.metrics.preparation import prepare

SIZE = (9, 7)
PREDICTION, CONFIDENCE = "minimal_sufficient_prediction", "minimal_sufficient_confidence"


def metric(classifier, **parameters):
    return MinimalSufficientFraction(classifier, MinimalSufficientFractionParameters(**parameters))


def sharp_network():
    """Probabilities that change much with what is shown."""
    scale = nn.Linear(5, 5, bias=False)
    scale.weight.data = 60 * torch.eye(5)
    return nn.Sequential(small_network(), scale)


def slow_scores(classifier, image, target, saliency, steps, level):
    """Both shares of one image."""
    order = np.argsort(-saliency.numpy().ravel())

    def answer(count):
        kept = torch.zeros_like(image).flatten(1)
        chosen = order[:count].copy()
        kept[:, chosen] = image.flatten(1)[:, chosen]
        with torch.no_grad():
            logits = classifier.logits(kept.view_as(image)[None])[0].double()
        return float(logits.softmax(0)[target]), int(logits.argmax()) == target

    whole, _ = answer(order.size)
    found = [1.0, 1.0]
    for k in reversed(range(steps + 1)):
        count = -(-k * order.size // steps)
        probability, predicted = answer(count)
        if predicted:
            found[0] = count / order.size
        if probability >= level * whole:
            found[1] = count / order.size
    return found


@pytest.mark.parametrize("level", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_both_shares_are_those_of_a_loop_over_images_and_steps(level, steps):
    classifier = ToyClassifier(sharp_network())
    batch = batch_of(classifier, random_inputs(8, SIZE), forwards=7)
    maps = random_maps(8, SIZE)
    scores = metric(classifier, level=level, steps=steps).score(batch, maps)
    expected = [
        slow_scores(classifier, *one, steps, level)
        for one in zip(batch.inputs, batch.targets.tolist(), maps, strict=True)
    ]
    found = torch.stack([scores.values[PREDICTION], scores.values[CONFIDENCE]], 1)
    np.testing.assert_allclose(found, expected)
    assert len(found.unique()) > 2
    assert scores.curves[PREDICTION].shape == scores.curves[CONFIDENCE].shape == (8, steps + 1)
    assert scores.curves[PREDICTION][:, -1].eq(1).all()
    torch.testing.assert_close(scores.curves[CONFIDENCE][:, -1], batch.confidence)


def counting(bias, pixels=20):
    """The logit of class 1 is the number of white pixels less ``-bias``, on an image of 4x5 white ones."""
    classifier = ToyClassifier(
        LinearPixels(torch.full((3, 4, 5), 1 / 3), bias), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    batch = batch_of(classifier, torch.ones(1, 3, 4, 5))
    assert batch.targets.tolist() == [1]
    return classifier, batch


@pytest.mark.parametrize(("bias", "expected"), [(-7.5, 8 / 20), (-18.5, 19 / 20), (-0.5, 1 / 20), (2.0, 0.0)])
def test_as_many_pixels_as_it_takes_whichever_they_are(bias, expected):
    classifier, batch = counting(bias)
    for maps in (random_maps(1, (4, 5)), torch.ones(1, 4, 5), torch.zeros(1, 4, 5)):
        found = metric(classifier, steps=20).score(batch, maps).values
        assert found[PREDICTION].item() == pytest.approx(expected)


def test_coarser_steps_round_up():
    classifier, batch = counting(-7.5)
    found = metric(classifier, steps=3).score(batch, random_maps(1, (4, 5)))
    assert found.values[PREDICTION].item() == pytest.approx(14 / 20)  # of 0, 7, 14 and 20 pixels
    assert found.curves[PREDICTION].tolist() == [[0, 0, 1, 1]]


def test_the_smallest_share_counts_also_where_more_is_not_enough():
    """Class 1 needs the first pixel, and the second speaks against it until the third is there."""
    weight = torch.zeros(3, 1, 4)
    weight[0] = torch.tensor([2.0, -3.0, 3.0, 0.0])
    classifier = ToyClassifier(LinearPixels(weight, -1.0), mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, torch.ones(1, 3, 1, 4))
    maps = torch.tensor([[[1.0, 0.8, 0.6, 0.0]]])
    scores = metric(classifier, steps=4).score(batch, maps)
    assert scores.curves[PREDICTION].tolist() == [[0, 1, 0, 1, 1]]
    assert scores.values[PREDICTION].item() == 0.25
    assert scores.values[CONFIDENCE].item() == 0.25


def test_a_target_that_is_never_predicted_takes_everything():
    classifier, batch = counting(2.0)
    batch = replace(batch, targets=torch.tensor([0]))
    values = metric(classifier).score(batch, random_maps(1, (4, 5))).values
    assert values[PREDICTION].item() == 1
    assert values[CONFIDENCE].item() == 0  # it has most where nothing is


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_no_order_of_a_linear_models_pixels_needs_less_than_that_of_their_terms(seed):
    weight = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1))
    classifier = ToyClassifier(LinearPixels(weight, -2.0), mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = random_inputs(1, (6, 5))
    batch = replace(batch_of(classifier, inputs), targets=torch.tensor([1]))
    scored = metric(classifier, steps=30)
    best = scored.score(batch, (weight * inputs).sum(1)).values
    other = scored.score(batch, random_maps(1, (6, 5), seed)).values
    assert best[PREDICTION] <= other[PREDICTION]
    assert best[CONFIDENCE] <= other[CONFIDENCE]
    assert 0 < best[PREDICTION] < 0.5


@given(power=st.sampled_from([0.5, 2.0, 3.0]), seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_only_the_order_of_a_maps_values_counts(power, seed):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(2, (6, 6)))
    maps = torch.randint(0, 5, (2, 6, 6), generator=torch.Generator().manual_seed(seed)) / 4
    scored = metric(classifier, steps=6)
    before, after = (scored.score(batch, one).curves[CONFIDENCE] for one in (maps, maps**power))
    assert torch.equal(before, after)


def test_of_a_text_the_share_is_that_of_its_tokens():
    classifier = Words(torch.tensor([1.0, 1.0, 1.0]))
    inputs = texts([[3], [4], [5]], [[3]])
    maps, _ = prepare(torch.rand(2, 12, generator=torch.Generator().manual_seed(0)), (12,), inputs[:, 1] >= 0)
    network = classifier.logits
    classifier.logits = lambda tokens: network(tokens) - torch.tensor([0.0, 1.5])
    batch = metric_batch_of(classifier, inputs)
    values = metric(classifier).score(batch, maps).values
    assert values[PREDICTION].tolist() == pytest.approx([2 / 3, 1.0])


def test_neither_batches_nor_chunks_change_a_score_and_unreadable_maps_have_none():
    classifier = ToyClassifier(sharp_network())
    batch = batch_of(classifier, random_inputs(5, SIZE))
    maps = (random_maps(5, SIZE) * 4).round() / 4
    maps[3] = torch.nan
    scored = metric(classifier, steps=9)
    together = scored.score(batch, maps)
    for name in (PREDICTION, CONFIDENCE):
        assert together.values[name].isnan().tolist() == [False, False, False, True, False]
        assert together.curves[name].isnan().all(1).tolist() == [False, False, False, True, False]
        for rows in ([0], [3], [4, 1, 0]):
            apart = scored.score(rows_of(batch, rows, forwards=4), maps[rows]).values[name]
            torch.testing.assert_close(apart, together.values[name][rows], atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"fill": "noise"}, {"level": 0}, {"level": 1.1}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        metric(None, **wrong)
