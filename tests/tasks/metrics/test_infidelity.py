"""Infidelity against loops, linear classifiers, and Captum."""

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captums
from hypothesis import given, settings
from hypothesis import strategies as st

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
from rounding import SMALL_NETWORK, rounding
from tasks.metrics.infidelity import Infidelity, InfidelityParameters, sums

SIZE = (12, 9)


def metric(classifier, **parameters):
    return Infidelity(classifier, InfidelityParameters(**parameters))


def scored(classifier, batch, maps, **parameters):
    return metric(classifier, **parameters).score(batch, maps).values["infidelity"]


def squared(value: float) -> float:
    """By how much rounding may change a mean of squared differences between two logits of the network.

    (x + e)^2 is x^2 + 2 x e and a little more, and the mean of x is the value's root at most.
    """
    return 2 * value**0.5 * (2 * SMALL_NETWORK) + (2 * SMALL_NETWORK) ** 2


def slow_sums(saliency, squares):
    """The map's sum in each square."""
    saliency = saliency.double().numpy()
    return np.array([saliency[one[0] : one[2], one[1] : one[3]].sum() for one in squares.tolist()])


def slow_costs(classifier, image, target, squares, fill):
    """What the target's logit loses with each square, one square at a time."""
    hidden = classifier.fill(image[None], fill).expand_as(image[None])[0]
    costs = []
    for top, left, bottom, right in squares.tolist():
        without = image.clone()
        without[:, top:bottom, left:right] = hidden[:, top:bottom, left:right]
        with torch.no_grad():
            logits = classifier.logits(torch.stack([image, without]))[:, target].double()
        costs.append(float(logits[0] - logits[1]))
    return np.array(costs)


@pytest.mark.parametrize("fill", ["mean", "black", "blur"])
@pytest.mark.parametrize("largest", [10 / 28, 1.0])
def test_the_value_is_that_of_a_loop_over_images_and_squares(fill, largest):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(4, SIZE), forwards=7)
    maps = random_maps(4, SIZE)
    parameters = {"samples": 12, "largest": largest, "fill": fill}
    found = scored(classifier, batch, maps, **parameters)
    squares = metric(classifier, **parameters).squares(batch.seeds, SIZE)
    for row in range(4):
        costs = slow_costs(classifier, batch.inputs[row], int(batch.targets[row]), squares[row], fill)
        inside = slow_sums(maps[row], squares[row])
        beta = (costs * inside).mean() / (inside**2).mean()
        expected = ((beta * inside - costs) ** 2).mean()
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=squared(expected))
        for other in (beta * 0.9, beta * 1.1):  # there is no better factor
            assert ((other * inside - costs) ** 2).mean() > expected


def linear():
    """A classifier whose logit is a sum of one term a pixel, none negative and one zero, against black."""
    weight = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    weight[:, 0, 0] = 0
    classifier = ToyClassifier(LinearPixels(weight), mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, random_inputs(3, SIZE))
    assert batch.targets.tolist() == [1, 1, 1]
    terms = (weight * batch.inputs).sum(1)
    return classifier, batch, terms / terms.amax((1, 2), keepdim=True)


def test_a_map_in_proportion_to_what_pixels_are_worth_to_a_linear_model_is_perfect():
    classifier, batch, maps = linear()
    perfect = scored(classifier, batch, maps, fill="black")
    # The logit is a sum of 3 H W terms.
    error = rounding(3 * SIZE[0] * SIZE[1], float(classifier.logits(batch.inputs).max()))
    assert (perfect < error**2).all()
    assert (scored(classifier, batch, maps**2, fill="black") > 1e-3).all()
    assert (scored(classifier, batch, torch.ones_like(maps), fill="black") > 1e-3).all()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_no_other_map_of_a_linear_model_comes_near(seed):
    classifier, batch, maps = linear()
    perfect = scored(classifier, batch, maps, fill="black", samples=40)
    assert (scored(classifier, batch, random_maps(3, SIZE, seed), fill="black", samples=40) > perfect).all()


def test_a_map_of_ones_is_right_where_all_pixels_are_worth_the_same():
    classifier = ToyClassifier(LinearPixels(torch.ones(3, *SIZE)), mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, torch.full((1, 3, *SIZE), 0.25))
    assert scored(classifier, batch, torch.ones(1, *SIZE), fill="black").item() < 1e-8


@pytest.mark.parametrize("scale", [1e-6, 0.3])
def test_the_scale_of_a_map_does_not_count(scale):
    classifier = ToyClassifier(small_network())
    batch, maps = batch_of(classifier, random_inputs(3, SIZE)), random_maps(3, SIZE)
    torch.testing.assert_close(
        scored(classifier, batch, maps * scale), scored(classifier, batch, maps), rtol=1e-4, atol=0
    )


def test_a_map_of_zeros_has_the_mean_square_of_the_costs_which_no_map_exceeds():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE))
    zero = scored(classifier, batch, torch.zeros(3, *SIZE))
    squares = metric(classifier).squares(batch.seeds, SIZE)
    for row in range(3):
        costs = slow_costs(classifier, batch.inputs[row], int(batch.targets[row]), squares[row], "mean")
        np.testing.assert_allclose(zero[row], (costs**2).mean(), rtol=0, atol=squared((costs**2).mean()))
    for seed in range(5):
        assert (scored(classifier, batch, random_maps(3, SIZE, seed)) <= zero).all()


def test_squares_are_of_all_sizes_and_everywhere_in_the_image_and_the_seeds_own():
    scoring = metric(ToyClassifier(small_network()), samples=4000, largest=0.5)
    squares = scoring.squares(torch.tensor([5, 6]), SIZE)
    top, left, bottom, right = squares.unbind(2)
    assert torch.equal(bottom - top, right - left)
    assert (bottom - top).unique().tolist() == [1, 2, 3, 4]
    shares = (bottom - top)[0].bincount()[1:] / 4000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, *SIZE)
    single = squares[0][(bottom - top)[0] == 1]
    assert len(single[:, :2].unique(dim=0)) == SIZE[0] * SIZE[1]
    assert not torch.equal(squares[0], squares[1])
    assert torch.equal(scoring.squares(torch.tensor([6]), SIZE)[0], squares[1])
    fewer = metric(ToyClassifier(small_network()), samples=10, largest=0.5)
    assert torch.equal(fewer.squares(torch.tensor([5]), SIZE), squares[:1, :10])


def test_sums_in_rectangles_are_those_of_slices():
    maps = random_maps(2, SIZE)
    squares = torch.tensor([[[0, 0, 12, 9], [3, 2, 4, 3]], [[0, 5, 4, 9], [8, 0, 12, 4]]])
    expected = [slow_sums(maps[row], squares[row]) for row in range(2)]
    np.testing.assert_allclose(sums(maps, squares), expected, rtol=1e-6)


def test_neither_batches_nor_chunks_nor_a_full_device_change_a_score():
    network, inputs = small_network(), random_inputs(4, SIZE)
    maps = random_maps(4, SIZE)
    maps[1] = torch.nan

    def values(forwards, rows, memory=None):
        classifier = ToyClassifier(network, memory=memory)
        batch = rows_of(batch_of(ToyClassifier(network), inputs), rows, forwards)
        found = scored(classifier, batch, maps[rows], samples=9)
        assert classifier.largest <= forwards
        assert classifier.rows == 10 * len(rows)  # the image itself, too
        return found

    whole = values(1000, [0, 1, 2, 3])
    assert whole.isnan().tolist() == [False, True, False, False]
    close = squared(float(whole.nan_to_num().max()))
    for forwards, rows in ((1, [0, 1, 2, 3]), (7, [3, 0]), (64, [2])):
        found = values(forwards, rows)
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=close, equal_nan=True)
    torch.testing.assert_close(values(64, [2], memory=3), whole[[2]], rtol=0, atol=close)


def test_captum_agrees_on_photographs_given_the_same_squares():
    """With ``normalize``; by default its value depends on the map's scale.

    It takes perturbations of the input's shape: a pixel's saliency is shared among its three channels, each
    of which counts 1 where the square is.
    """
    network, images = real_network_and_images()
    classifier = ToyClassifier(network, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, images)
    maps = batch.explain(images, torch.arange(len(images)))
    found = scored(classifier, batch, maps, samples=20)
    squares = metric(classifier, samples=20).squares(batch.seeds, (32, 32)).flatten(0, 1)
    lost = torch.zeros(len(squares), 3, 32, 32)
    for one, (top, left, bottom, right) in zip(lost, squares.tolist(), strict=True):
        one[:, top:bottom, left:right] = 1

    def perturb(inputs):
        return lost, torch.where(lost == 1, classifier.fill(inputs, "mean"), inputs)

    attributions = (maps / 3)[:, None].expand_as(images)
    expected = captums(
        network, perturb, images, attributions, target=batch.targets, n_perturb_samples=20, normalize=True
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert found.min() > 1e-3


@pytest.mark.parametrize(
    "wrong", [{"samples": 1}, {"largest": 0}, {"fill": "mask"}, {"perturbation": "noise"}]
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InfidelityParameters(**wrong)
