"""Similarity of maps with those of randomised networks and of other classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from explainers.base import Need as ExplainerNeed
from metric_toys import (
    Gradients,
    LinearPixels,
    ToyClassifier,
    batch_of,
    random_inputs,
    random_maps,
    real_network_and_images,
    rows_of,
    small_network,
)
from sequences import LENGTH, Words, metric_batch_of, texts
from tasks.metrics import random_weights
from tasks.metrics.preparation import prepare
from tasks.metrics.random_weights import layers_with_weights, with_random_weights
from tasks.metrics.randomisation import Randomisation, RandomisationParameters, RandomLogit
from tasks.metrics.similarity import ssim

SIZE = (12, 10)


class Gives:
    """An explainer that gives what it is told to, and notes what it was asked."""

    def __init__(self, maps: Tensor, needs=frozenset()) -> None:
        self.maps, self.needs, self.asked = maps, needs, []

    def __call__(self, _, rows, *, targets=None, classifier=None):
        self.asked.append((rows, targets, classifier))
        return self.maps[rows]


def toy(count: int = 4, parameters: dict[str, object] | None = None):
    """A metric, a batch whose explainer is gradients, and its maps."""
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(count, SIZE))
    maps = batch.explain(batch.inputs, torch.arange(count))
    return Randomisation(classifier, RandomisationParameters(**parameters or {})), batch, maps


# Randomised networks


@pytest.mark.parametrize(
    ("stages", "layers"), [(1, [6]), (2, [0, 6]), (3, [0, 3, 6]), (5, [0, 2, 3, 4, 6]), (50, [*range(7)])]
)
def test_stages_are_spread_from_the_layer_of_the_logits_to_all(stages: int, layers: list[int]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *[nn.Conv2d(4, 4, 1) for _ in range(6)])
    assert Randomisation(ToyClassifier(network), RandomisationParameters(stages=stages)).deepest == layers


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_scores_are_similarities_with_the_maps_of_randomised_networks_one_by_one(order: str) -> None:
    metric, batch, maps = toy(parameters={"order": order, "stages": 3})
    weights = metric.classifier.network[0].weight.clone()
    scores = metric.score(batch, maps)
    for stage, layers in enumerate([[0], [0, 1], [0, 1, 2]] if order == "cascading" else [[0], [1], [2]]):
        network = with_random_weights(metric.classifier, layers)
        others = batch.explain(batch.inputs, torch.arange(4), classifier=network)
        for row in range(4):
            expected = spearmanr(maps[row].flatten(), others[row].flatten()).statistic
            assert float(scores.curves["randomisation"][row, stage]) == pytest.approx(expected, abs=1e-6)
        assert torch.equal(scores.curves["randomisation_ssim"][:, stage], ssim(maps, others))
    for name, curve in scores.curves.items():
        assert torch.equal(scores.values[name], curve.mean(1))
        assert curve.shape == (4, 3)
        assert (curve < 0.999).all()
    assert torch.equal(metric.classifier.network[0].weight, weights)
    assert order == "independent" or "down to the input" in metric.columns()[0].fill


def test_the_original_class_is_explained_in_every_network_and_copies_are_freed() -> None:
    metric, batch, maps = toy()
    explain = Gives(maps)
    metric.score(replace(batch, explain=explain), maps)
    assert len(explain.asked) == len(layers_with_weights(metric.classifier.network)) == 3
    assert all(targets is None for _, targets, _ in explain.asked)
    copies = [classifier for _, _, classifier in explain.asked]
    assert len({id(classifier) for classifier in [*copies, metric.classifier]}) == 4
    # Nothing is left of the copies, however long somebody holds on to them.
    assert all(parameter.numel() == 0 for copy in copies for parameter in copy.network.parameters())
    assert all(parameter.numel() for parameter in metric.classifier.network.parameters())


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_a_map_that_ignores_the_network_is_exactly_as_similar_as_can_be(order: str) -> None:
    metric, batch, _ = toy(parameters={"order": order})
    maps = random_maps(4, SIZE)
    scores = metric.score(replace(batch, explain=Gives(maps)), maps)
    assert all((value == 1).all() for value in [*scores.values.values(), *scores.curves.values()])


def test_outcomes_of_flat_and_undefined_maps() -> None:
    """In turn: map and others flat, only the map, only the others; others of NaN; the map of NaN."""
    metric, batch, _ = toy(5)
    maps, others = random_maps(5, SIZE), random_maps(5, SIZE, seed=3)
    maps[0], others[0], maps[1], others[2], others[3], maps[4] = 0.0, 0.0, 1.0, 0.0, torch.nan, torch.nan
    scores = metric.score(replace(batch, explain=Gives(others)), maps).values
    expected = torch.tensor([torch.nan, torch.nan, 0, torch.nan, torch.nan])
    torch.testing.assert_close(scores["randomisation"], expected, equal_nan=True)
    assert scores["randomisation_ssim"].isnan().tolist() == [False, False, False, True, True]
    assert float(scores["randomisation_ssim"][0]) == 1
    assert float(scores["randomisation_ssim"][2]) < 0.2


@pytest.mark.parametrize("need", [ExplainerNeed.TRAINED, ExplainerNeed.PREDICTION])
def test_explainers_to_which_the_tests_do_not_apply_have_no_score_and_are_not_run(need) -> None:
    metric, batch, maps = toy()
    explain = Gives(maps, frozenset({need}))
    scores = metric.score(replace(batch, explain=explain), maps)
    assert all(value.isnan().all() for value in [*scores.values.values(), *scores.curves.values()])
    assert list(scores.values) == [column.name for column in metric.columns()]
    logit = RandomLogit(metric.classifier, RandomLogit.Parameters())
    found = logit.score(replace(batch, explain=explain), maps)
    assert list(found.values) == [column.name for column in logit.columns()]
    # A head trained to explain this network has a map for every class.
    assert found.values["random_logit"].isnan().all() == (need == ExplainerNeed.PREDICTION)
    assert len(explain.asked) == (need == ExplainerNeed.TRAINED)


def test_scores_do_not_depend_on_the_batch_or_the_global_generator() -> None:
    metric, batch, maps = toy(6)
    logit = RandomLogit(metric.classifier, RandomLogit.Parameters())
    for each in (metric, logit):
        together = each.score(batch, maps).values
        torch.manual_seed(5)
        for rows in ([0], [3, 1], [5, 4, 2]):
            alone = each.score(rows_of(batch, rows), maps[rows]).values
            for name, value in together.items():
                torch.testing.assert_close(alone[name], value[rows], atol=1e-5, rtol=0)


def test_a_classifier_without_parameters_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no parameters that could be drawn anew"):
        Randomisation(ToyClassifier(LinearPixels(torch.ones(3, 4, 4))), RandomisationParameters())


def test_texts_have_a_rank_correlation_only() -> None:
    classifier = Words(torch.tensor([1.0, -0.5, 2.0, 0.25, 0.7, -1.0]))
    batch = metric_batch_of(classifier, texts([[3], [4, 5], [6], [8], [7]], [[6], [4], [5], [3]]))
    maps = batch.explain(batch.inputs, torch.arange(2))
    assert maps.shape == (2, LENGTH)
    metric = Randomisation(classifier, RandomisationParameters())
    scores = metric.score(batch, maps)
    assert list(scores.values) == ["randomisation"] == [column.name for column in metric.columns()]
    others = batch.explain(batch.inputs, torch.arange(2), classifier=with_random_weights(classifier, [0]))
    for row, n in enumerate((8, 6)):
        expected = spearmanr(maps[row, 1 : n - 1], others[row, 1 : n - 1]).statistic
        assert float(scores.values["randomisation"][row]) == pytest.approx(expected, abs=1e-6)
    # The evidence for one of two classes is that against the other, and is not to be seen as such.
    logit = RandomLogit(classifier, RandomLogit.Parameters()).score(batch, maps)
    assert (logit.values["random_logit"] < 0).all()


# Other classes


def test_the_other_class_is_drawn_uniformly_from_all_others_by_the_seed() -> None:
    classifier = ToyClassifier(small_network())
    count = 4000
    batch = batch_of(classifier, random_inputs(2, SIZE))
    targets, seeds = torch.arange(count) % 5, torch.arange(count) * 7919
    explain = Gives(random_maps(1, SIZE).expand(count, -1, -1))
    batch = replace(batch, inputs=torch.zeros(count, 3, 1, 1), targets=targets, seeds=seeds, explain=explain)
    metric = RandomLogit(classifier, RandomLogit.Parameters())
    metric.score(batch, explain.maps)
    metric.score(batch, explain.maps)
    (_, drawn, other), (_, again, _) = explain.asked
    assert torch.equal(drawn, again)
    assert other is None
    drawn_at = Counter(((drawn - targets) % 5).tolist())
    assert drawn_at.keys() == {1, 2, 3, 4}  # never the class itself
    assert all(abs(times - count / 4) < 5 * (count * 3 / 16) ** 0.5 for times in drawn_at.values())


def test_random_logit_compares_the_maps_of_two_classes() -> None:
    """Known maps: pixels times a class's weights. Of classes 0 and 1 they are equal, of 2 the reverse."""
    metric = RandomLogit(ToyClassifier(small_network()), RandomLogit.Parameters())
    metric.classifier.num_classes = 3
    ramp = torch.linspace(0, 1, SIZE[0] * SIZE[1]).view(SIZE)
    of_class = torch.stack([ramp, ramp, 1 - ramp])

    asked = []

    def explain(_, rows, targets):
        asked.append(targets)
        return of_class[targets]

    explain.needs = frozenset()
    _, batch, _ = toy(60)
    batch = replace(batch, targets=torch.arange(60) % 3, explain=explain)
    scores = metric.score(batch, of_class[batch.targets]).values
    same = (batch.targets < 2) & (asked[0] < 2)
    assert 0 < same.sum() < 60
    torch.testing.assert_close(scores["random_logit"], torch.where(same, 1.0, -1.0))
    assert (scores["random_logit_ssim"] == 1).tolist() == same.tolist()


# An independent implementation, on a real network


def real_toy():
    """A real network behind the toy's interface, and its batch of real images."""
    network, inputs = real_network_and_images()
    classifier = ToyClassifier(network, mean=(0.0,) * 3, std=(1.0,) * 3)
    return classifier, batch_of(classifier, inputs)


@pytest.mark.parametrize(("order", "theirs"), [("cascading", "top_down"), ("independent", "independent")])
def test_quantus_agrees_on_a_network_all_of_whose_parameters_it_knows(monkeypatch, order, theirs) -> None:
    """Both draw through ``reset_parameters``, which here gives a layer the same weights in both.

    Quantus's own draws cannot be had: it sets the same seed before every layer. And its average over layers
    has one entry too many, the similarity of the original map with itself.
    """
    from quantus import MPRT

    def reset(layer: nn.Module) -> None:
        generator = torch.Generator().manual_seed(layer.weight.numel())
        for parameter in (layer.weight, layer.bias):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = drawn / layer.weight[0].numel() ** 0.5

    for kind in (nn.Conv2d, nn.Linear):
        monkeypatch.setattr(kind, "reset_parameters", reset)
    classifier, batch = real_toy()
    rows = torch.arange(len(batch.inputs))
    maps = batch.explain(batch.inputs, rows)

    def explain(model, inputs, targets, **_) -> np.ndarray:
        network = ToyClassifier(model, mean=(0.0,) * 3, std=(1.0,) * 3)
        part = replace(batch, targets=torch.as_tensor(targets))
        found = Gradients(network, part)(torch.as_tensor(inputs), torch.arange(len(inputs)))
        return found[:, None].numpy()

    inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
    how = {"layer_order": theirs, "abs": False, "normalise": False, "disable_warnings": True}
    pass_on = {"explain_func": explain, "device": "cpu", "batch_size": 32}
    found = MPRT(**how)(classifier.network, inputs, targets, **pass_on)
    np.testing.assert_allclose(found.pop("original"), 1)
    average = MPRT(return_average_correlation=True, **how)(classifier.network, inputs, targets, **pass_on)
    ours = Randomisation(classifier, RandomisationParameters(order=order)).score(batch, maps)
    curve = ours.curves["randomisation"]
    assert curve.shape == (32, 5)
    assert len({round(float(value), 3) for value in curve.mean(0)}) == 5
    top_down = [name for name, _ in classifier.network.named_children()][::-1]
    stages = torch.tensor([found[name] for name in top_down])
    torch.testing.assert_close(curve, stages.T.float(), atol=1e-4, rtol=0)
    too_high = (1 + 5 * ours.values["randomisation"]) / 6
    torch.testing.assert_close(too_high, torch.tensor(average).float(), atol=1e-4, rtol=0)


def test_gradients_of_a_real_network_change_with_its_weights_and_edges_do_not() -> None:
    """Not by much, though: borders and pooling alone make the sizes of gradients similar (0.66 to 0.74)."""
    classifier, batch = real_toy()
    metric = Randomisation(classifier, RandomisationParameters())
    gradients = metric.score(batch, batch.explain(batch.inputs, torch.arange(32))).curves["randomisation"]
    assert (gradients.mean(0) < 0.8).all()
    edges, _ = prepare(batch.inputs.mean(1), (32, 32))
    found = metric.score(replace(batch, explain=Gives(edges)), edges).values
    assert all((value == 1).all() for value in found.values())


def test_the_seeds_of_layers_come_from_their_numbers(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(random_weights, "seed_of", lambda *parts: seen.append(parts) or len(seen))
    metric, batch, maps = toy(parameters={"stages": 2})
    metric.score(batch, maps)
    assert seen == [("randomisation", layer) for layer in (0, 0, 1, 2)]
