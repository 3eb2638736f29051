"""Average drop, gain, increase in confidence, drop in deletion: by definition, one image at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from metric_toys import (
    LinearPixels,
    ToyClassifier,
    batch_of,
    random_inputs,
    random_maps,
    rows_of,
    small_network,
)
from rounding import OVER_CONFIDENCE, rounding
from sequences import MASK, Words, metric_batch_of, texts
from tasks.metrics.average_drop import AverageDrop, AverageDropInDeletion, AverageDropParameters
from tasks.metrics.preparation import prepare

SIZE = (9, 7)
LEVELS = (100, 50, 15)


def metric(classifier, **parameters):
    return AverageDrop(classifier, AverageDropParameters(**parameters))


def inverse(classifier, **parameters):
    return AverageDropInDeletion(classifier, AverageDropParameters(**parameters))


def slow_scores(classifier, image, target: int, saliency, level: int) -> tuple[float, ...]:
    """Drop, increase, gain, and drop in deletion, of one image: sort, cut, multiply, run."""
    mask = saliency.numpy().astype(float)
    kept = round(level / 100 * mask.size)
    for pixel in np.argsort(-mask.ravel())[kept:]:
        mask.ravel()[pixel] = 0.0

    def probability(mask):
        with torch.no_grad():
            masked = torch.from_numpy(image.numpy() * mask).float()
            return float(classifier.logits(masked[None])[0].double().softmax(0)[target])

    before, after, deleted = (probability(one) for one in (np.ones_like(mask), mask, 1 - mask))
    gain = max(0.0, after - before) / (1 - before)
    return max(0.0, before - after) / before, float(after > before), gain, max(0.0, before - deleted) / before


@pytest.mark.parametrize("levels", [LEVELS, (37,), (1, 99)])
def test_drops_and_increases_equal_a_loop_over_images_and_levels(levels):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(12, SIZE), forwards=5)
    maps = random_maps(12, SIZE)
    values = metric(classifier, levels=levels).score(batch, maps).values
    for level in levels:
        expected = np.array(
            [
                slow_scores(classifier, *one, level)
                for one in zip(batch.inputs, batch.targets.tolist(), maps, strict=True)
            ]
        )
        np.testing.assert_allclose(values[f"average_drop_{level}"], expected[:, 0], atol=OVER_CONFIDENCE)
        np.testing.assert_array_equal(values[f"increase_in_confidence_{level}"], expected[:, 1])
        np.testing.assert_allclose(values[f"average_gain_{level}"], expected[:, 2], atol=OVER_CONFIDENCE)
        found = inverse(classifier, levels=levels).score(batch, maps).values
        assert list(found) == [f"average_drop_in_deletion_{level}" for level in levels]
        deleted = found[f"average_drop_in_deletion_{level}"]
        np.testing.assert_allclose(deleted, expected[:, 3], atol=OVER_CONFIDENCE)


def test_the_comparison_sees_both_drops_and_increases():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(12, SIZE))
    values = metric(classifier).score(batch, random_maps(12, SIZE)).values
    gains = torch.stack([values[f"increase_in_confidence_{level}"] for level in LEVELS])
    assert 0 < gains.sum() < gains.numel()
    drops = torch.stack([values[f"average_drop_{level}"] for level in LEVELS])
    assert torch.equal(drops == 0, gains == 1)
    shares = torch.stack([values[f"average_gain_{level}"] for level in LEVELS])
    assert torch.equal(shares > 0, gains == 1)
    deleted = torch.stack(list(inverse(classifier).score(batch, random_maps(12, SIZE)).values.values()))
    assert deleted.min() == 0 < deleted.max()


def test_a_map_of_ones_drops_nothing_and_increases_nothing_at_all_pixels():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(7, SIZE))
    # Whatever rounding the caller's forward pass had.
    batch = type(batch)(**{**vars(batch), "confidence": batch.confidence * (1 - 1e-6)})
    values = metric(classifier).score(batch, torch.ones(7, *SIZE)).values
    assert torch.equal(values["average_drop_100"], torch.zeros(7))
    assert torch.equal(values["increase_in_confidence_100"], torch.zeros(7))
    assert torch.equal(values["average_gain_100"], torch.zeros(7))
    assert (values["average_drop_15"] > 0).any()


def test_a_map_of_zeros_deletes_nothing_at_all_and_one_of_ones_everything():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE))
    batch = replace(batch, confidence=batch.confidence * (1 - 1e-6))
    for value in inverse(classifier).score(batch, torch.zeros(3, *SIZE)).values.values():
        assert torch.equal(value, torch.zeros(3))
    values = inverse(classifier).score(batch, torch.ones(3, *SIZE)).values
    with torch.no_grad():
        black = classifier.logits(torch.zeros(1, 3, *SIZE)).softmax(1)[0, batch.targets]
    expected = (1 - black / batch.confidence).clamp(min=0)
    torch.testing.assert_close(values["average_drop_in_deletion_100"], expected)
    assert not torch.equal(values["average_drop_in_deletion_15"], values["average_drop_in_deletion_100"])


def test_columns_say_what_is_multiplied_with_and_which_way_is_better():
    classifier = ToyClassifier(small_network())
    kept, deleted = metric(classifier).columns(), inverse(classifier).columns()
    assert [column.better for column in kept] == ["lower"] * 3 + ["higher"] * 6
    assert {column.fill for column in kept} == {"black: pixels times the map, before normalisation"}
    assert {(column.low, column.high, column.better) for column in deleted} == {(0.0, 1.0, "higher")}
    assert {column.fill for column in deleted} == {"black: pixels times 1 - map, before normalisation"}


def test_a_map_of_zeros_leaves_a_black_input_at_every_level():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE))
    with torch.inference_mode():
        black = classifier.logits(torch.zeros(1, 3, *SIZE)).softmax(1)[0, batch.targets]
    values = metric(classifier).score(batch, torch.zeros(3, *SIZE)).values
    for level in LEVELS:
        expected = (1 - black / batch.confidence).clamp(min=0)
        torch.testing.assert_close(values[f"average_drop_{level}"], expected, atol=OVER_CONFIDENCE, rtol=0)


def test_masking_is_of_pixels_before_normalisation():
    weight = torch.zeros(3, 2, 2)
    weight[0, 0, 0] = 1.0
    classifier = ToyClassifier(LinearPixels(weight), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    inputs = torch.full((1, 3, 2, 2), 0.75)
    maps = torch.tensor([[[0.5, 1.0], [0.0, 0.0]]])
    values = metric(classifier, levels=(100, 25)).score(batch_of(classifier, inputs), maps).values
    before = 1 / (1 + np.exp(-1.0))  # (0.75 - 0.5) / 0.25
    halved = 1 / (1 + np.exp(0.5))  # (0.375 - 0.5) / 0.25
    black = 1 / (1 + np.exp(2.0))  # (0 - 0.5) / 0.25: one pixel is kept, and it is the other one
    np.testing.assert_allclose(values["average_drop_100"], 1 - halved / before, rtol=1e-5)
    np.testing.assert_allclose(values["average_drop_25"], 1 - black / before, rtol=1e-5)


def test_exactly_the_level_is_kept_of_a_plateau():
    classifier = ToyClassifier(LinearPixels(torch.ones(3, 10, 10)), mean=(0.0,) * 3, std=(300.0,) * 3)
    batch = batch_of(classifier, torch.ones(1, 3, 10, 10))
    values = metric(classifier).score(batch, torch.ones(1, 10, 10)).values
    for level in LEVELS:  # the logit is the share of pixels kept
        expected = 1 - torch.tensor(level / 100).sigmoid() / torch.tensor(1.0).sigmoid()
        torch.testing.assert_close(values[f"average_drop_{level}"][0], expected, atol=1e-5, rtol=0)


def test_neither_chunk_size_nor_a_full_device_changes_a_score():
    network, inputs, maps = small_network(), random_inputs(6, SIZE), random_maps(6, SIZE)

    def values(forwards, memory=None):
        classifier = ToyClassifier(network, memory=memory)
        batch = batch_of(classifier, inputs, forwards=forwards)
        found = [make(classifier).score(batch, maps).values.values() for make in (metric, inverse)]
        assert classifier.largest <= forwards
        return torch.stack([*found[0], *found[1]])

    whole = values(1000)
    for forwards, memory in ((1, None), (5, None), (64, 4)):
        torch.testing.assert_close(values(forwards, memory), whole, atol=OVER_CONFIDENCE, rtol=0)


def test_a_batch_scores_as_its_images_one_by_one():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(4, SIZE))
    maps = (random_maps(4, SIZE) * 3).round() / 3
    for make in (metric, inverse):
        together = make(classifier).score(batch, maps).values
        for row in range(4):
            alone = make(classifier).score(rows_of(batch, [row]), maps[row : row + 1]).values
            for name, value in alone.items():
                expected = together[name][row : row + 1]
                torch.testing.assert_close(value, expected, atol=OVER_CONFIDENCE, rtol=0)


def test_nothing_can_drop_from_a_probability_of_zero():
    classifier = ToyClassifier(LinearPixels(torch.full((3, 4, 4), 1e4)), mean=(0.0,) * 3)
    batch = batch_of(classifier, torch.ones(1, 3, 4, 4))
    batch = type(batch)(**{**vars(batch), "targets": torch.tensor([0]), "confidence": torch.zeros(1)})
    values = metric(classifier).score(batch, torch.zeros(1, 4, 4)).values
    assert values["average_drop_50"].isnan().all()
    assert values["increase_in_confidence_50"].item() == 1
    assert values["average_gain_50"].item() == pytest.approx(0.5)
    found = inverse(classifier).score(batch, torch.ones(1, 4, 4)).values
    assert found["average_drop_in_deletion_50"].isnan().all()


def test_nothing_can_be_gained_on_a_probability_of_one():
    classifier = ToyClassifier(LinearPixels(torch.full((3, 4, 4), 1e4)), mean=(0.0,) * 3)
    batch = batch_of(classifier, torch.ones(2, 3, 4, 4))
    assert (batch.confidence == 1).all()
    values = metric(classifier).score(batch, random_maps(2, (4, 4))).values
    for level in LEVELS:
        assert values[f"average_gain_{level}"].isnan().all()
        assert torch.equal(values[f"increase_in_confidence_{level}"], torch.zeros(2))


def test_of_a_text_the_most_salient_tokens_are_hidden_and_the_others_stay():
    weights = [1.0, -0.5, 2.0, 0.25]
    classifier = Words(torch.tensor(weights))
    inputs = texts([[3], [4, 5], [6]], [[5]])
    maps, _ = prepare(torch.tensor([[0, 0.1, 0.4, 0.9, 0.3, 0] + [0] * 6] * 2), (12,), inputs[:, 1] >= 0)
    values = inverse(classifier).score(metric_batch_of(classifier, inputs), maps).values
    assert list(values) == ["average_drop_in_deletion_50", "average_drop_in_deletion_15"]

    def probability(kept):
        return 1 / (1 + math.exp(-sum(weights[i] for i in kept)))

    before = probability(range(4))
    for level, kept in ((50, (0, 3)), (15, (0, 1, 3))):
        expected = (before - probability(kept)) / before
        found = values[f"average_drop_in_deletion_{level}"]
        assert float(found[0]) == pytest.approx(expected, abs=rounding(8, magnitude=4))
        assert found[1].isnan()  # one token: nothing is left
    assert MASK not in inputs[:, 0]
    with pytest.raises(ValueError, match="every token is kept"):
        inverse(classifier, levels=(100,))


@pytest.mark.parametrize("levels", [(), (0,), (101,), (50, 50), (12.5,)])
def test_levels_that_are_no_distinct_whole_percentages_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        AverageDropParameters(levels=levels)
