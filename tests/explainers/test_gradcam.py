"""Grad-CAM against Captum, against hooks on the whole network, and in closed form."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torchvision.models import resnet18

import toys
from explainers.base import Batch, Explanation
from explainers.gradcam import GradCam
from explainers.models.classifier import Classifier
from rounding import TOYS, rounding


def explain(classifier: Classifier, batch: Batch) -> Explanation:
    return GradCam(classifier, GradCam.Parameters()).explain(batch)


def with_targets(batch: Batch, targets: list[int]) -> Batch:
    return Batch(batch.inputs, torch.tensor(targets), batch.seeds, batch.activations, batch.forwards)


@pytest.mark.parametrize("name", ["conv_gap", "conv_mlp"])
def test_maps_equal_captums_on_small_networks(name: str) -> None:
    with toys.CLASSIFIERS[name]() as classifier:
        batch = with_targets(toys.batch(classifier, 4), [0, 1, 2, 3])
        maps = explain(classifier, batch).maps
        captum = LayerGradCam(classifier.network, classifier.network.features)
        expected = captum.attribute(batch.inputs, batch.targets, relu_attributions=False)
    # Back through 20 and 192 products, mean gradients of 16 positions, and sums of 12 channels.
    close = rounding(20 + 192 + 16 + 12, magnitude=float(expected.detach().abs().max()))
    torch.testing.assert_close(maps, expected[:, 0], rtol=1e-4, atol=close)
    assert (maps < 0).any()


def test_maps_equal_captums_on_a_resnet_with_preprocessing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet18(num_classes=10)
    with Classifier(network, input_size=(64, 64), mean=[0.4] * 3, std=[0.2] * 3) as classifier:
        batch = with_targets(toys.batch(classifier, 2), [3, 8])
        maps = explain(classifier, batch).maps
        captum = LayerGradCam(network, network.layer4)
        expected = captum.attribute((batch.inputs - 0.4) / 0.2, batch.targets, relu_attributions=False)
    # Mean gradients of 4 positions, and sums of 512 channels.
    close = rounding(4 + 512, magnitude=float(expected.detach().abs().max()))
    torch.testing.assert_close(maps, expected[:, 0], rtol=1e-4, atol=close)


def test_a_pooled_linear_head_gives_its_weights_over_the_number_of_positions() -> None:
    """The mean's gradient is 1 / (h w) at every position, so that each channel weighs weight / (h w)."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
    activations = torch.rand(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with toys.linear(weight) as classifier:
        batch = with_targets(toys.batch_of(classifier, activations), [1])
        maps = explain(classifier, batch).maps
    expected = (-2 * activations[0, 0] + 3 * activations[0, 1] + activations[0, 2]) / 4
    torch.testing.assert_close(maps[0], expected.float())


def test_tokens_are_laid_on_their_grid_and_the_class_token_is_left_out() -> None:
    with toys.vit() as classifier:
        batch = with_targets(toys.batch(classifier, 2), [1, 4])
        maps = explain(classifier, batch).maps
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(args[0].detach().requires_grad_())
            return (seen[0],)

        handle = classifier.network.blocks[-1].register_forward_pre_hook(keep)
        classifier.logits(batch.inputs).gather(1, batch.targets[:, None]).sum().backward()
        handle.remove()
    tokens, gradient = seen[0].detach()[:, 1:], seen[0].grad[:, 1:]
    expected = (tokens * gradient.mean(1, keepdim=True)).sum(2)
    close = TOYS * float(expected.abs().max())
    torch.testing.assert_close(maps, expected.view(2, 4, 4), rtol=1e-4, atol=close)


def test_tensors_made_in_inference_mode_are_explained_inside_and_outside_of_it() -> None:
    with toys.conv_mlp() as classifier:
        plain = toys.batch(classifier, 3)
        expected = explain(classifier, plain).maps
        with torch.inference_mode():
            made = Batch(plain.inputs + 0, plain.targets + 0, plain.seeds, plain.activations + 0)
            inside = explain(classifier, made).maps
        assert made.activations is not None
        assert made.activations.is_inference()
        assert torch.equal(inside, expected)
        assert torch.equal(explain(classifier, made).maps, expected)


def test_activations_and_parameters_are_left_without_gradients() -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 2)
        maps = explain(classifier, batch).maps
        assert batch.activations is not None
        assert not batch.activations.requires_grad
        assert not maps.requires_grad
        assert all(parameter.grad is None for parameter in classifier.network.parameters())
