"""Sensitivity: known maps, known networks, and Captum on real images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature

import pytest
import torch
from captum.metrics import sensitivity_max
from pydantic import ValidationError
from torch import Tensor, nn

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
from rounding import CONV_MLP, SMALL_NETWORK, rounding
from tasks.metrics.base import MetricBatch
from tasks.metrics.sensitivity import Sensitivity, SensitivityParameters

SIZE = (12, 10)


class Red:
    """An explainer whose map is the red channel, and which keeps what it is given."""

    needs = frozenset()

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, inputs, _, *, targets=None, classifier=None):
        assert targets is classifier is None  # the class explained and the network stay
        self.seen.append(inputs.clone())
        return inputs[:, 0]


def toy(inputs: Tensor, network: nn.Module | None = None, **parameters: float):
    """The metric, and a batch whose explainer is gradients."""
    classifier = ToyClassifier(network or small_network(), mean=(0.0,) * 3, std=(1.0,) * 3)
    return Sensitivity(classifier, SensitivityParameters(**parameters)), batch_of(classifier, inputs)


def red_of(inputs: Tensor, **parameters: float):
    """Scores of :class:`Red`, and the noisy inputs it saw."""
    metric, batch = toy(inputs, **parameters)
    batch = replace(batch, explain=Red())
    return metric.score(batch, inputs[:, 0]).values, torch.stack(batch.explain.seen)


def test_the_gradient_of_a_linear_network_does_not_move() -> None:
    metric, batch = toy(random_inputs(3, SIZE), LinearPixels(torch.rand(3, *SIZE)))
    assert (batch.targets == 1).all()
    scores = metric.score(batch, batch.explain(batch.inputs, torch.arange(3))).values
    assert all((value == 0).all() for value in scores.values())


def test_a_map_that_is_the_input_moves_by_the_noise() -> None:
    """Uniform noise within r has the mean square r^2 / 3, and no sample's norm exceeds r sqrt(n)."""
    inputs = 0.1 + 0.8 * random_inputs(3, (60, 50))
    scores, seen = red_of(inputs, radius=0.1, samples=6)
    norms = inputs[:, 0].flatten(1).norm(dim=1)
    by_hand = (seen[:, :, 0] - inputs[:, 0]).flatten(2).norm(dim=2) / norms
    torch.testing.assert_close(scores["max_sensitivity"], by_hand.max(0).values)
    torch.testing.assert_close(scores["average_sensitivity"], by_hand.mean(0))
    expected = 0.1 * (3000 / 3) ** 0.5 / norms
    torch.testing.assert_close(scores["average_sensitivity"], expected, rtol=0.02, atol=0)
    assert (scores["max_sensitivity"] > scores["average_sensitivity"]).all()
    assert (scores["max_sensitivity"] < 3**0.5 * expected).all()


def test_the_noise_is_uniform_within_the_radius_and_kept_in_the_pixels_range() -> None:
    inputs = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 60, 50)
    _, seen = red_of(inputs, radius=0.02, samples=4)
    noise = seen - inputs
    assert seen.min() == 0
    assert seen.max() == 1
    assert noise.abs().max() <= 0.02 + rounding(1)  # where it was added to the pixels
    grey = noise[:, 1]
    assert float(grey.mean()) == pytest.approx(0, abs=2e-4)
    assert float(grey.var()) == pytest.approx(0.02**2 / 3, rel=0.02)
    # Of black and white half is lost; all samples and channels have noise of their own.
    assert float((noise[:, 0] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    correlation = torch.corrcoef(grey.flatten(0, 1).flatten(1))
    assert (correlation - torch.eye(12)).abs().max() < 0.1


def test_images_have_noise_of_their_own() -> None:
    _, seen = red_of(torch.full((2, 3, 60, 50), 0.5), samples=1)
    assert torch.corrcoef(seen[0].flatten(1))[0, 1].abs() < 0.05


def test_more_noise_moves_the_map_further_and_more_samples_find_no_smaller_maximum() -> None:
    _, batch = toy(random_inputs(4, SIZE))
    maps = batch.explain(batch.inputs, torch.arange(4))

    def score(**parameters: float) -> Mapping[str, Tensor]:
        return toy(batch.inputs, **parameters)[0].score(batch, maps).values

    few, many = score(samples=3), score(samples=9)
    assert (many["max_sensitivity"] >= few["max_sensitivity"]).all()
    assert (score(radius=0.2)["average_sensitivity"] > score(radius=0.01)["average_sensitivity"]).all()
    assert batch.explain.rows == 4 * (1 + 3 + 9 + 10 + 10)


def test_outcomes_of_zero_and_undefined_maps() -> None:
    """In turn: a map of zeros; noisy maps of zeros; one noisy map of NaN; a constant map; the map of NaN."""

    class Gives:
        needs, calls = frozenset(), 0

        def __call__(self, _, rows):
            self.calls += 1
            maps = random_maps(5, SIZE)
            maps[1], maps[2], maps[3] = 0.0, torch.nan if self.calls == 2 else 0.5, 1.0
            return maps[rows]

    metric, batch = toy(random_inputs(5, SIZE))
    maps = random_maps(5, SIZE)
    maps[0], maps[3], maps[4] = 0.0, 1.0, torch.nan
    batch = replace(batch, explain=Gives())
    nan = torch.nan
    for value in metric.score(batch, maps).values.values():
        torch.testing.assert_close(value, torch.tensor([nan, 1.0, nan, 0.0, nan]), equal_nan=True)


def test_scores_do_not_depend_on_the_batch() -> None:
    metric, batch = toy(random_inputs(6, SIZE))
    maps = batch.explain(batch.inputs, torch.arange(6))
    together = metric.score(batch, maps).values
    for rows in ([0], [3, 1], [5, 4, 2]):
        alone = metric.score(rows_of(batch, rows), maps[rows]).values
        for name, value in together.items():
            torch.testing.assert_close(alone[name], value[rows], rtol=1e-4, atol=SMALL_NETWORK)


@pytest.mark.parametrize("given", [{"radius": 0}, {"radius": 1.5}, {"samples": 0}, {"norm": 2}])
def test_parameters_out_of_range_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        SensitivityParameters(**given)


def test_the_radius_stands_with_the_number() -> None:
    found = toy(random_inputs(1, SIZE), radius=0.05)[0].columns()
    assert [column.name for column in found] == ["max_sensitivity", "average_sensitivity"]
    assert {column.fill for column in found} == {"uniform noise within 0.05 of each pixel, kept in [0, 1]"}


# An independent implementation


def of_captum(metric: Sensitivity, batch: MetricBatch) -> Tensor:
    """Max-sensitivity by Captum, from the metric's own noise."""

    def noisy(_: tuple[Tensor], __: float) -> tuple[Tensor]:  # every image's samples side by side
        samples = [metric._noisy(batch, sample) for sample in range(metric.samples)]
        return (torch.stack(samples, 1).flatten(0, 1),)

    def explain(inputs: tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        return (batch.explain(inputs[0], torch.arange(len(inputs[0])), targets=target),)

    found: Tensor = sensitivity_max(
        explain,
        batch.inputs,
        noisy,
        perturb_radius=metric.radius,
        n_perturb_samples=metric.samples,
        target=batch.targets,
    )
    return found


def test_captum_agrees_on_real_images_but_for_maps_of_zeros() -> None:
    """Captum divides by 1 where the map has no norm: an absolute change among relative ones."""
    network, inputs = real_network_and_images()
    metric, batch = toy(inputs, network)
    maps = batch.explain(batch.inputs, torch.arange(32))
    ours = metric.score(batch, maps).values["max_sensitivity"]
    assert (ours > 0.01).sum() >= 30
    torch.testing.assert_close(of_captum(metric, batch), ours, rtol=0, atol=CONV_MLP)

    class VanishesAtRest:
        needs = frozenset()

        def __call__(self, inputs, *_, **__):
            same = len(inputs) == len(batch.inputs) and torch.equal(inputs, batch.inputs)
            return torch.full_like(inputs[:, 0], 0.0 if same else 0.5)

    batch = replace(batch, explain=VanishesAtRest())
    assert metric.score(batch, torch.zeros_like(maps)).values["max_sensitivity"].isnan().all()
    torch.testing.assert_close(of_captum(metric, batch), torch.full((32,), 0.5 * 32))


def test_the_defaults_are_captums() -> None:
    theirs = {name: each.default for name, each in signature(sensitivity_max).parameters.items()}
    ours = SensitivityParameters()
    assert (ours.radius, ours.samples) == (theirs["perturb_radius"], theirs["n_perturb_samples"])
