"""Captum's methods as explainers: against direct calls of Captum, and in closed form where it is known."""

from __future__ import annotations

from collections import OrderedDict
from itertools import permutations

import numpy as np
import pytest
import torch
from captum.attr import (
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    NoiseTunnel,
    Saliency,
)
from torch import Tensor, nn

import toys
from explainers.base import Batch, Explanation, Status
from explainers.models.classifier import Classifier
from explainers.probes.masked_forward import target_probability
from explainers.registry import explainers

METHODS: dict[str, dict[str, object]] = {
    "integrated_gradients": {"steps": 12},
    "smoothgrad": {"samples": 12},
    "input_x_gradient": {},
    "gradient_shap": {"samples": 12},
    "kernel_shap": {"cells": 2, "samples": 12},
    "lime": {"cells": 2, "samples": 12},
}


def explain(name: str, classifier: Classifier, batch: Batch, **parameters: object) -> Explanation:
    cls = explainers.get(name)
    explanation: Explanation = cls(classifier, cls.Parameters(**parameters)).explain(batch)
    return explanation


def logit_of(classifier: Classifier, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.logits(inputs).gather(1, targets[:, None])[:, 0]


def linear_logits(weight: Tensor) -> Classifier:
    """Logits linear in 8x8 pixels: one row of ``weight`` (C, 192) a class."""
    layers = OrderedDict(
        features=nn.Identity(), flat=nn.Flatten(), out=nn.Linear(192, len(weight), bias=False)
    )
    layers["out"].weight.data = weight
    return Classifier(nn.Sequential(layers), layer="features", input_size=(8, 8))


# Against direct calls


@pytest.mark.parametrize("kind", toys.CLASSIFIERS)
def test_deterministic_methods_equal_captums_on_the_whole_batch(kind: str) -> None:
    with toys.CLASSIFIERS[kind]() as classifier:
        batch = toys.batch(classifier, 3, forwards=5)
        inputs, targets = batch.inputs.clone().requires_grad_(), batch.targets.clone()
        found = explain("integrated_gradients", classifier, batch, steps=7).maps
        direct = IntegratedGradients(classifier.logits).attribute(inputs, 0, targets, n_steps=7)
        torch.testing.assert_close(found, direct.sum(1).detach(), atol=1e-5, rtol=1e-4)
        found = explain("input_x_gradient", classifier, batch).maps
        direct = InputXGradient(classifier.logits).attribute(inputs, targets)
        torch.testing.assert_close(found, direct.sum(1).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["conv_mlp", "vit"])
def test_sampled_gradients_equal_captums_with_the_images_seed(kind: str) -> None:
    with toys.CLASSIFIERS[kind]() as classifier:
        batch = toys.batch(classifier, 3, forwards=5)
        smooth = explain("smoothgrad", classifier, batch, samples=9, noise=0.1).maps
        shap = explain("gradient_shap", classifier, batch, samples=9).maps
        for image in range(3):
            one, target = batch.inputs[image : image + 1], int(batch.targets[image])
            torch.manual_seed(int(batch.seeds[image]))
            direct = NoiseTunnel(Saliency(classifier.logits)).attribute(
                one, nt_samples=9, stdevs=0.1 * float(one.max() - one.min()), target=target, abs=False
            )
            torch.testing.assert_close(smooth[image], direct.abs().sum(1)[0], atol=1e-5, rtol=1e-4)
            np.random.seed(int(batch.seeds[image]))  # noqa: NPY002
            black_and_white = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
            direct = GradientShap(classifier.logits).attribute(
                one, black_and_white, n_samples=9, target=target
            )
            torch.testing.assert_close(shap[image], direct.sum(1)[0].detach(), atol=1e-5, rtol=1e-4)


def test_kernel_shap_equals_captums_with_the_images_seed() -> None:
    """On cells of unequal size: 5 a side of 32 pixels."""
    with toys.vit() as classifier:
        batch = toys.batch(classifier, 2, forwards=7)
        found = explain("kernel_shap", classifier, batch, cells=5, samples=60).maps
        cell = torch.arange(32) * 5 // 32
        places = (cell[:, None] * 5 + cell)[None, None]
        for image in range(2):
            targets = batch.targets[image : image + 1]
            direct = KernelShap(
                lambda inputs, t=targets: target_probability(
                    classifier, classifier.logits(inputs), t.expand(len(inputs))
                )
            )
            torch.manual_seed(int(batch.seeds[image]))
            expected = direct.attribute(
                batch.inputs[image : image + 1],
                baselines=classifier.mean[None].expand(1, 3, 32, 32),
                feature_mask=places,
                n_samples=60,
                return_input_shape=False,
            )
            torch.testing.assert_close(found[image], expected.view(5, 5), atol=1e-4, rtol=1e-3)


# In closed form


@pytest.mark.parametrize("kind", toys.CLASSIFIERS)
def test_integrated_gradients_add_up_to_the_logit_over_that_of_black(kind: str) -> None:
    with toys.CLASSIFIERS[kind]() as classifier:
        batch = toys.batch(classifier, 3)
        found = explain("integrated_gradients", classifier, batch, steps=200).maps
        black = torch.zeros_like(batch.inputs)
        expected = logit_of(classifier, batch.inputs, batch.targets)
        expected -= logit_of(classifier, black, batch.targets)
    torch.testing.assert_close(found.sum((1, 2)), expected, rtol=0.01, atol=0.01)


def test_of_linear_logits_gradients_are_the_weights() -> None:
    weight = torch.randn(4, 192, generator=torch.Generator().manual_seed(0))
    with linear_logits(weight) as classifier:
        batch = Batch(toys.inputs(3, 8), torch.tensor([2, 0, 3]), torch.arange(3))
        of_target = weight[batch.targets].view(3, 3, 8, 8)
        times_input = (of_target * batch.inputs).sum(1)
        found = explain("input_x_gradient", classifier, batch).maps
        torch.testing.assert_close(found, times_input)
        found = explain("integrated_gradients", classifier, batch, steps=2).maps
        torch.testing.assert_close(found, times_input, atol=1e-5, rtol=1e-4)
        found = explain("smoothgrad", classifier, batch, samples=2).maps
        torch.testing.assert_close(found, of_target.abs().sum(1))
        found = explain("gradient_shap", classifier, batch, samples=4000).maps
        half_way = (of_target * (batch.inputs - 0.5)).sum(1)
        assert found.allclose(half_way, atol=0.1)


@pytest.fixture
def linear_probability() -> tuple[Classifier, Batch, Tensor]:
    """Two inputs, and what each of 3x3 cells adds to the probability of class 0."""
    weight = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    weight /= weight.sum()
    batch = Batch(toys.inputs(2, 12), torch.tensor([0, 0]), torch.arange(2))
    worth = (batch.inputs * weight).sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((3, 4))
    return toys.proportion(weight), batch, worth


Linear = tuple[Classifier, Batch, Tensor]


def test_kernel_shap_of_a_linear_probability_is_what_each_cell_adds(linear_probability: Linear) -> None:
    classifier, batch, worth = linear_probability
    found = explain("kernel_shap", classifier, batch, cells=3, samples=40).maps
    torch.testing.assert_close(found, worth, atol=1e-4, rtol=1e-3)


def test_lime_of_a_linear_probability_is_the_weighted_ridge_regression(linear_probability: Linear) -> None:
    """Centred by weighted means, then solved by the normal equations."""
    classifier, batch, worth = linear_probability
    found = explain("lime", classifier, batch, cells=3, samples=200, kernel_width=0.4).maps
    for image in range(2):
        torch.manual_seed(int(batch.seeds[image]))
        shown = torch.cat([torch.bernoulli(torch.full((1, 9), 0.5)) for _ in range(200)]).double().numpy()
        probability = shown @ worth[image].flatten().double().numpy()
        cosine = shown.sum(1) / np.sqrt(9 * np.maximum(shown.sum(1), 1))
        weight = np.sqrt(np.exp(-((1 - cosine) ** 2) / 0.4**2))
        mean = weight / weight.sum()
        X, y = shown - mean @ shown, probability - mean @ probability
        expected = np.linalg.solve(X.T @ (weight[:, None] * X) + np.eye(9), X.T @ (weight * y))
        np.testing.assert_allclose(found[image].flatten(), expected, rtol=1e-3, atol=1e-5)
        assert np.corrcoef(found[image].flatten(), worth[image].flatten())[0, 1] > 0.99


def test_kernel_shap_approaches_the_shapley_values_of_a_network_whose_cells_interact() -> None:
    """Two by two cells: all 16 sets are passed, and each cell's gain is averaged over the 24 orders."""
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 1)
        sets = torch.tensor([[number >> bit & 1 for bit in range(4)] for number in range(16)])
        shown = sets.view(16, 1, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
        with torch.no_grad():
            logits = classifier.logits(batch.inputs * shown)
        value = target_probability(classifier, logits, batch.targets.expand(16))
        shapley = torch.zeros(4)
        for order in torch.tensor(list(permutations(range(4)))).tolist():
            present = 0
            for cell in order:
                shapley[cell] += (value[present | 1 << cell] - value[present]) / 24
                present |= 1 << cell
        found = explain("kernel_shap", classifier, batch, cells=2, samples=4000).maps
    assert shapley.abs().max() > 0.02
    torch.testing.assert_close(found.flatten(), shapley, atol=0.005, rtol=0)


# Batches, memory and random numbers


@pytest.mark.parametrize("name", METHODS)
def test_passes_are_as_many_as_said_and_no_more_at_once_than_asked(name: str) -> None:
    sizes: list[int] = []
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 3, forwards=5)
        handle = classifier.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        found = explain(name, classifier, batch, **METHODS[name])
        handle.remove()
    passes = 1 if name == "input_x_gradient" else 12
    assert found.details["forward_passes"].tolist() == [passes] * 3
    assert sum(sizes) == 3 * passes
    assert max(sizes) <= 5


@pytest.mark.parametrize("name", METHODS)
def test_running_out_of_memory_changes_no_result(name: str) -> None:
    def refuse(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError

    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 3)
        expected = explain(name, classifier, batch, **METHODS[name])
        handle = classifier.network.register_forward_pre_hook(refuse)
        found = explain(name, classifier, batch, **METHODS[name])
        handle.remove()
    torch.testing.assert_close(found.maps, expected.maps, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.details["forward_passes"], expected.details["forward_passes"])


@pytest.mark.parametrize("name", METHODS)
def test_the_global_generators_go_on_as_if_nothing_had_been_drawn(name: str) -> None:
    def crash(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise ArithmeticError

    def draws() -> tuple[float, float]:
        return float(torch.rand(())), np.random.rand()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002

    seed()
    expected = draws()
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 1)
        seed()
        explain(name, classifier, batch, **METHODS[name])
        assert draws() == expected
        handle = classifier.network.register_forward_pre_hook(crash)
        seed()
        with pytest.raises(ArithmeticError):
            explain(name, classifier, batch, **METHODS[name])
        handle.remove()
        assert draws() == expected


@pytest.mark.parametrize("name", ["rise", "occlusion", *METHODS])
def test_an_image_whose_scores_are_not_finite_is_reported_alone(name: str) -> None:
    """Of the others, nothing changes."""

    def overflow(module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return logits * torch.where(args[0].mean((1, 2, 3)) > 2, torch.nan, 1)[:, None]

    parameters = {"rise": {"masks": 12}, "occlusion": {"window": 112, "stride": 112}, **METHODS}[name]
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 3)
        whole = explain(name, classifier, batch, **parameters)
        inputs = batch.inputs.clone()
        inputs[1] = 10
        handle = classifier.network.register_forward_hook(overflow)
        found = explain(name, classifier, Batch(inputs, batch.targets, batch.seeds), **parameters)
        handle.remove()
    assert found.statuses == [Status.OK, Status.NOT_FINITE, Status.OK]
    torch.testing.assert_close(found.maps[[0, 2]], whole.maps[[0, 2]], atol=1e-5, rtol=1e-4)


def test_more_cells_than_pixels_are_refused() -> None:
    with toys.conv_mlp() as classifier, pytest.raises(ValueError, match="cells: 33 a side do not fit into"):
        explain("lime", classifier, toys.batch(classifier, 1), cells=33)
