"""ADCC from its parts, each by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

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
from rounding import OVER_CONFIDENCE, rounding
from tasks.metrics.adcc import Adcc, pearson
from tasks.metrics.base import NoParameters

SIZE = (9, 7)


def scored(batch, maps):
    metric = Adcc(batch.explain.classifier, NoParameters())
    assert [column.name for column in metric.columns()] == ["coherency", "adcc_complexity", "adcc"]
    return metric.score(batch, maps).values


def slow_scores(batch, row, saliency):
    """Coherency, complexity and ADCC of one image, as the paper and its code have them."""
    image, target = batch.inputs[row : row + 1], int(batch.targets[row])
    masked = image * saliency
    again = batch.explain(masked, torch.tensor([row]))[0]
    with torch.no_grad():
        before, after = (
            float(batch.explain.classifier.logits(one)[0].double().softmax(0)[target])
            for one in (image, masked)
        )
    coherency = (1 + pearsonr(saliency.numpy().ravel(), again.numpy().ravel())[0]) / 2
    complexity = np.abs(saliency.numpy()).sum() / saliency.numel()
    drop = max(0.0, before - after) / before
    return coherency, complexity, 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))


def test_the_three_numbers_are_those_of_a_loop_over_images():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(6, SIZE))
    maps = torch.cat([random_maps(3, SIZE), batch.explain(batch.inputs[3:], torch.arange(3, 6))])
    values = scored(batch, maps)
    expected = np.array([slow_scores(batch, row, maps[row]) for row in range(6)])
    np.testing.assert_allclose(torch.stack(list(values.values()), 1), expected, atol=OVER_CONFIDENCE)
    assert values["coherency"][3:].min() > values["coherency"][:3].max()  # its own maps


def test_on_photographs_too_and_there_gradients_beat_noise_in_coherency():
    network, images = real_network_and_images()
    classifier = ToyClassifier(network, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, images)
    maps = batch.explain(images, torch.arange(len(images)))
    values = scored(batch, maps)
    expected = np.array([slow_scores(batch, row, maps[row]) for row in range(len(images))])
    np.testing.assert_allclose(torch.stack(list(values.values()), 1), expected, atol=1e-5)
    noise = scored(batch, random_maps(len(images), (32, 32)))
    assert values["coherency"].mean() > noise["coherency"].mean() + 0.1


def test_maps_of_ones_are_coherent_and_worth_nothing():
    """The paper's argument: a map that shows everything drops nothing, and explains nothing."""
    batch = batch_of(ToyClassifier(small_network()), random_inputs(3, SIZE))
    constant = replace(batch, explain=Always(batch, torch.ones(3, *SIZE)))
    values = scored(constant, torch.ones(3, *SIZE))
    assert torch.equal(values["coherency"], torch.ones(3))
    assert torch.equal(values["adcc_complexity"], torch.ones(3))
    assert torch.equal(values["adcc"], torch.zeros(3))


class Always:
    """An explainer that gives the same maps whatever it is asked; it remembers what it was."""

    def __init__(self, batch, maps) -> None:
        self.classifier, self.maps, self.needs, self.asked = batch.explain.classifier, maps, frozenset(), []

    def __call__(self, inputs, rows, **_):
        self.asked.append((inputs, rows))
        return self.maps[rows]


def test_a_constant_map_correlates_with_no_other():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(2, SIZE))
    maps = random_maps(2, SIZE)
    for theirs, ours in (
        (torch.zeros(2, *SIZE), maps),
        (maps, torch.ones(2, *SIZE)),
        (maps * 0, maps * 0 + 1),
    ):
        values = scored(replace(batch, explain=Always(batch, theirs)), ours)
        assert torch.equal(values["coherency"], torch.full((2,), 0.5))


def test_a_map_of_zeros_has_what_black_leaves_of_the_class():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(2, SIZE))
    zeros = torch.zeros(2, *SIZE)
    values = scored(replace(batch, explain=Always(batch, zeros)), zeros)
    with torch.no_grad():
        black = batch.explain.classifier.logits(batch.inputs * 0).softmax(1).gather(1, batch.targets[:, None])
    kept = (black[:, 0] / batch.confidence).clamp(max=1)
    torch.testing.assert_close(values["adcc"], 3 / (2 + 1 / kept))
    assert torch.equal(values["adcc_complexity"], torch.zeros(2))


def test_a_class_that_vanishes_altogether_makes_the_whole_number_zero():
    classifier = ToyClassifier(LinearPixels(torch.full((3, 4, 4), 1e4), -1e3), mean=(0.0,) * 3)
    batch = batch_of(classifier, torch.ones(1, 3, 4, 4))
    maps = torch.zeros(1, 4, 4)
    values = scored(replace(batch, explain=Always(batch, maps)), maps)
    assert values["adcc"].item() == 0


def test_the_explainer_sees_the_masked_input_once_and_nothing_of_unreadable_maps():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(4, SIZE))
    maps = random_maps(4, SIZE)
    explain = Always(batch, random_maps(4, SIZE, seed=5))
    whole = scored(replace(batch, explain=explain), maps)
    maps[2] = torch.nan
    values = scored(replace(batch, explain=explain), maps)
    (_, all_rows), (inputs, rows) = explain.asked
    assert (all_rows.tolist(), rows.tolist()) == ([0, 1, 2, 3], [0, 1, 3])
    torch.testing.assert_close(inputs, (batch.inputs * maps[:, None])[rows])
    for name, value in values.items():
        assert value.isnan().tolist() == [False, False, True, False]
        torch.testing.assert_close(value[rows], whole[name][rows])
    scored(replace(batch, explain=explain), torch.full_like(maps, torch.nan))
    assert len(explain.asked) == 2


def test_where_the_explainer_fails_on_the_masked_input_only_complexity_is_known():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(2, SIZE))
    again = random_maps(2, SIZE)
    again[1] = torch.nan
    values = scored(replace(batch, explain=Always(batch, again)), random_maps(2, SIZE, seed=3))
    assert values["adcc_complexity"].isnan().tolist() == [False, False]
    assert values["coherency"].isnan().tolist() == values["adcc"].isnan().tolist() == [False, True]


def test_the_harmonic_mean_is_never_above_the_arithmetic_one():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(8, SIZE))
    maps = random_maps(8, SIZE) ** torch.arange(1, 9).view(-1, 1, 1)
    values = scored(batch, maps)
    rest = 3 * values["adcc"] - values["coherency"] - (1 - values["adcc_complexity"])
    assert (rest <= 1 + rounding(10, magnitude=3)).all()  # ten sums, products and quotients
    assert (values["adcc"] > 0).all()


def test_a_batch_scores_as_its_images_one_by_one():
    batch = batch_of(ToyClassifier(small_network()), random_inputs(4, SIZE), forwards=3)
    maps = random_maps(4, SIZE)
    together = scored(batch, maps)
    for row in range(4):
        for name, value in scored(rows_of(batch, [row]), maps[row : row + 1]).items():
            torch.testing.assert_close(value, together[name][row : row + 1], atol=OVER_CONFIDENCE, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_correlations_are_scipys_and_know_no_scale(scale):
    maps, others = random_maps(5, SIZE), random_maps(5, SIZE, seed=4) ** 3
    expected = [pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(maps.numpy(), others.numpy(), strict=True)]
    np.testing.assert_allclose(pearson(maps, 0.5 + scale * others), expected, atol=1e-4)
    torch.testing.assert_close(pearson(maps, maps * scale), torch.ones(5))
    torch.testing.assert_close(pearson(maps, 1 - maps), -torch.ones(5))
