"""The classifier on randomly initialised networks of every supported family."""

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from explainers.models.classifier import Classifier, Units
from families import FAMILIES, MEAN, PUBLISHED, STD, condition, normalised, pixels, published, randomised


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(classifier, an untouched twin of its network, expectations)."""
    build, *expected = FAMILIES[request.param]
    torch.manual_seed(0)
    twin = randomised(build()).eval().requires_grad_(False)
    classifier = Classifier(copy.deepcopy(twin), input_size=(64, 64), mean=MEAN, std=STD)
    return classifier, twin, expected


def at_layer(network, layer, inputs):
    """What passes the layer in a plain forward of the network, by a hook; and the logits."""
    seen = []
    name, _, side = layer.partition(":")
    module = network.get_submodule(name)
    if side:
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    logits = network(inputs)
    handle.remove()
    return seen[0], logits


def test_default_layer_units_grid_and_prefix_are_right(family):
    classifier, _, (layer, shape, prefix) = family
    tokens = classifier.spatial(classifier.activations(pixels())).shape[2:].numel()
    units = Units("tokens", tokens) if len(shape) == 2 or layer == "norm" else Units("channels", shape[0])
    assert (classifier.layer, classifier.activation_shape, classifier.prefix_tokens) == (layer, shape, prefix)
    assert classifier.units == units
    assert classifier.grid == ((4, 4) if len(shape) == 2 else (2, 2))
    assert classifier.num_classes == 7


def test_logits_are_the_networks_on_normalised_inputs(family):
    classifier, twin, _ = family
    logits = classifier.logits(pixels())
    torch.testing.assert_close(logits, twin(normalised(pixels())))
    assert logits.std(0).mean() > 1e-3  # the networks do tell the inputs apart


@pytest.mark.parametrize("count", [1, 3])
def test_head_of_activations_is_logits(family, count):
    classifier, twin, _ = family
    inputs = pixels(count)
    activations = classifier.activations(inputs)
    assert activations.shape == (count, *classifier.activation_shape)
    torch.testing.assert_close(classifier.head(activations), twin(normalised(inputs)))


def test_activations_are_what_the_layer_gives(family):
    classifier, twin, (layer, *_) = family
    expected, _ = at_layer(twin, layer, normalised(pixels()))
    # DenseNet's ReLU after its features is a function without a name, works in place and belongs to them.
    torch.testing.assert_close(classifier.activations(pixels()), expected)


def test_gradients_through_the_head_are_the_whole_networks(family):
    classifier, twin, (layer, *_) = family
    inputs = normalised(pixels()).requires_grad_()
    there, logits = at_layer(twin, layer, inputs)
    (expected,) = torch.autograd.grad(logits[:, 3].sum(), there)
    activations = classifier.activations(pixels()).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.head(activations)[:, 3].sum(), activations)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().max() > 0


def test_gradients_reach_the_inputs(family):
    classifier, twin, _ = family
    plain, wrapped = pixels().requires_grad_(), pixels().requires_grad_()
    (expected,) = torch.autograd.grad(twin(normalised(plain))[:, 0].sum(), plain)
    activations = classifier.activations(wrapped)
    (gradient,) = torch.autograd.grad(classifier.head(activations)[:, 0].sum(), wrapped)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_head_does_not_write_to_activations(family):
    classifier, _, _ = family
    activations = classifier.activations(pixels())
    before = activations.clone()
    classifier.head(activations)
    assert torch.equal(activations, before)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_cut_at_the_same_layers(name):
    layer, count = PUBLISHED[name]
    with torch.no_grad(), Classifier(published(name)(), input_size=(64, 64)) as classifier:
        assert (classifier.layer, classifier.units.count, classifier.grid) == (layer, count, (2, 2))
        activations = classifier.activations(pixels(1))
        torch.testing.assert_close(classifier.head(activations), classifier.logits(pixels(1)))


def test_masking_no_unit_changes_nothing_and_masking_all_leaves_the_prefix(family):
    classifier, _, _ = family
    activations = classifier.activations(pixels())
    keep = torch.ones(3, classifier.units.count, dtype=torch.bool)
    assert torch.equal(classifier.mask_units(activations, keep), activations)
    emptied = classifier.mask_units(activations, ~keep)
    assert not classifier.spatial(emptied).any()
    prefix = classifier.prefix_tokens
    assert torch.equal(emptied[:, :prefix], activations[:, :prefix])


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet", "vit", "timm_deit"])
def test_everything_is_restored_after_use_and_after_a_crash(name):
    network = FAMILIES[name][0]().train()
    list(network.children())[-1].eval()  # a mixed condition is restored as mixed
    next(iter(network.parameters())).requires_grad_(False)
    before = condition(network)
    weights = copy.deepcopy(network.state_dict())
    with Classifier(network, input_size=(64, 64)) as classifier:
        assert not any(module.training for module in network.modules())
        assert not any(getattr(module, "inplace", False) for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        classifier.head(classifier.activations(pixels().requires_grad_())).sum().backward()
        if classifier.supports_patches:
            classifier.logits_of_patches(pixels(), torch.ones(3, 16, dtype=torch.bool))
    assert condition(network) == before
    with pytest.raises((RuntimeError, ValueError)), Classifier(network, input_size=(64, 64)) as classifier:  # noqa: PT012
        if classifier.supports_patches:
            classifier.logits_of_patches(pixels(), torch.ones(3, 5, dtype=torch.bool))
        classifier.logits(torch.rand(3, 4, 64, 64))
    assert condition(network) == before
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_networks_are_recognised_by_the_class_they_derive_from():
    class Mine(models.ResNet):
        pass

    network = Mine(models.resnet.BasicBlock, [1, 1, 1, 1])
    classifier = Classifier(network, input_size=(64, 96))
    assert (classifier.layer, classifier.grid) == ("layer4", (2, 3))


def test_inputs_need_not_be_square():
    network = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=1, embed_dim=48, num_heads=3)
    classifier = Classifier(network, input_size=(32, 64))
    assert (classifier.layer, classifier.grid, classifier.prefix_tokens) == ("blocks.0:input", (2, 4), 1)


# The fingerprint


def test_the_fingerprint_tells_weights_apart_and_nothing_else():
    def fingerprint(change=nn.Module.eval, **kwargs):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        change(network)
        return Classifier(network, layer="0", input_size=(8, 8), **kwargs).fingerprint

    def renamed(network):
        network.insert(0, nn.Conv2d(3, 3, 1))

    def nudged(network):
        network[0].bias.data[0] = network[0].bias.data[0].nextafter(torch.tensor(9.0))

    prints = [fingerprint(), fingerprint(nudged), fingerprint(renamed)]
    assert len(set(prints)) == 3
    assert all(len(value) == 64 for value in prints)
    assert fingerprint(mean=(0.5, 0.5, 0.5)) == prints[0]


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


UNUSABLE = {
    "without values": (lambda: plain().to("meta"), "model.source: the network is on the meta device"),
    "exported": (
        lambda: torch.export.export(plain().eval(), (torch.rand(2, 3, 32, 32),)).module(),
        r"model.layer: cut at '0', the network stops \(Guard failed",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_networks_that_cannot_be_prepared_are_refused_in_one_line(kind):
    build, reason = UNUSABLE[kind]
    with pytest.raises(ValueError, match=f"^{reason}") as refused:
        Classifier(build(), layer="0", input_size=(32, 32)).grid  # noqa: B018
    assert "\n" not in str(refused.value)
