"""Every parameter of every family of networks is drawn anew, and nothing but what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.models.tensors import TensorClassifier
from families import FAMILIES, MEAN, STD, pixels, small_vit
from metric_toys import LinearPixels, ToyClassifier
from tasks.metrics.random_weights import layers_with_weights, with_random_weights
from text_toys import text_classifier

TEXTS = ("bert", "distilbert", "roberta", "bart", "t5", "gpt2", "llama")


def perturbed(network: nn.Module) -> nn.Module:
    """No weights as a network is born with, which drawing anew might give again."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1
            module.running_var *= 1.3
    return network


def images_of(name: str) -> Classifier:
    return Classifier(perturbed(FAMILIES[name][0]()), input_size=(64, 64), mean=MEAN, std=STD)


def shares_kept(one: BlackBox, other: BlackBox) -> dict[str, float]:
    """How many of each parameter's numbers are the same in both."""
    others = dict(other.network.named_parameters())
    return {n: float((p == others[n]).float().mean()) for n, p in one.network.named_parameters()}


def everything(classifier: BlackBox) -> range:
    return range(len(layers_with_weights(classifier.network)))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_parameter_of_an_image_network_survives_and_the_cut_copy_is_one_network(name: str) -> None:
    with images_of(name) as classifier, torch.no_grad():
        fingerprint, inputs = classifier.fingerprint, pixels(2)
        clone = with_random_weights(classifier, everything(classifier))
        kept = shares_kept(classifier, clone)
        assert max(kept.values()) < 0.01, {n: share for n, share in kept.items() if share >= 0.01}
        for before, after in zip(classifier.network.modules(), clone.network.modules(), strict=True):
            if isinstance(before, nn.BatchNorm2d):
                assert not torch.equal(before.running_mean, after.running_mean)
                assert not torch.equal(before.running_var, after.running_var)
            assert before.training == after.training
        assert clone.fingerprint != fingerprint
        logits = clone.logits(inputs)
        assert logits.isfinite().all()
        torch.testing.assert_close(clone.head(clone.activations(inputs)), logits, rtol=1e-4, atol=1e-5)
        del classifier.__dict__["fingerprint"]
        assert classifier.fingerprint == fingerprint


@pytest.mark.parametrize("kind", TEXTS)
def test_no_parameter_of_a_text_network_survives(kind: str) -> None:
    with text_classifier(kind) as classifier, torch.no_grad():
        perturbed(classifier.network)
        clone = with_random_weights(classifier, everything(classifier))
        kept = shares_kept(classifier, clone)
        assert max(kept.values()) < 0.05, {n: share for n, share in kept.items() if share >= 0.05}
        text = torch.from_numpy(classifier.encode("the film was not very good")[0])[None]
        assert clone.logits(classifier.inputs_of(text)).isfinite().all()


@pytest.mark.parametrize("name", ["vit", "timm_vit_registers", "swin_v2", "mobilenet_v2"])
def test_one_layer_is_drawn_and_no_other_is_touched(name: str) -> None:
    with images_of(name) as classifier:
        names = {id(parameter): n for n, parameter in classifier.network.named_parameters()}
        for number, layer in enumerate(layers_with_weights(classifier.network)):
            kept = shares_kept(classifier, with_random_weights(classifier, [number]))
            own = {names[id(parameter)] for parameter in layer.parameters(recurse=False)}
            assert {n for n, share in kept.items() if share < 1} == own


def test_layers_go_from_the_logits_to_the_input_with_the_embeddings_of_tokens_last() -> None:
    network = small_vit()
    names = {id(module): name for name, module in network.named_modules()}
    found = [names[id(layer)] for layer in layers_with_weights(network)]
    assert found[:2] == ["heads.head", "encoder.ln"]
    assert found[-3:] == ["encoder", "conv_proj", ""]  # position embedding, patches, class token


def test_a_layer_is_drawn_alike_whatever_else_is_and_the_global_generator_is_left_alone() -> None:
    with images_of("vit") as classifier:
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        alone = with_random_weights(classifier, [3])
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(2)
        together = with_random_weights(classifier, range(8))
    one, other = (layers_with_weights(clone.network)[3] for clone in (alone, together))
    assert isinstance(one, nn.Linear)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_layers_of_the_same_shape_are_drawn_differently() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    clone = with_random_weights(TensorClassifier(network, (6,)), range(3))
    assert not torch.equal(clone.network[0].weight, clone.network[2].weight)


def test_what_no_reset_reaches_keeps_its_size_and_not_its_values() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2000, 2)
            self.scale = nn.Parameter(torch.full((2000,), 3.0))
            self.temperature = nn.Parameter(torch.tensor(7.0))
            self.zero = nn.Parameter(torch.zeros(4))

        def reset_parameters(self) -> None:  # reaches too far, and not far enough
            self.inner.weight.data.zero_()

        def forward(self, inputs):
            return self.inner(inputs * self.scale)

    classifier = TensorClassifier(Scaled(), (2000,))
    clone = with_random_weights(classifier, [1]).network
    assert torch.equal(clone.inner.weight, classifier.network.inner.weight)
    assert float(clone.scale.square().mean().sqrt()) == pytest.approx(3, rel=0.1)
    assert abs(float(clone.scale.mean())) < 0.3
    assert float(clone.temperature) != 7
    assert not clone.zero.any()


def test_gradients_pass_through_a_copy_made_in_inference_mode() -> None:
    with images_of("vit") as classifier:
        with torch.inference_mode():
            clone = with_random_weights(classifier, everything(classifier))
        leaf = pixels(2).requires_grad_()
        clone.logits(leaf)[:, 0].sum().backward()
        assert leaf.grad.abs().sum() > 0
        clone.network.conv_proj.weight.requires_grad_()
        clone.logits(leaf)[:, 0].sum().backward()
        assert clone.network.conv_proj.weight.grad is not None


@pytest.mark.parametrize("network", [LinearPixels(torch.ones(3, 4, 4)), nn.Identity()])
def test_a_classifier_without_parameters_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^model\.source: the classifier has no parameters"):
        with_random_weights(ToyClassifier(network), [])


def test_quantus_leaves_the_embeddings_and_the_attention_of_a_vision_transformer_as_they_were() -> None:
    """It calls ``reset_parameters`` where there is one, and so never touches what modules of modules hold."""
    from quantus.helpers.model.pytorch_model import PyTorchModel

    network = perturbed(small_vit())
    *_, (_, last) = PyTorchModel(network).get_random_layer_generator("top_down", seed=42)
    before = dict(network.named_parameters())
    survivors = {name for name, parameter in last.named_parameters() if torch.equal(parameter, before[name])}
    attention = "encoder.layers.encoder_layer_{}.self_attention.in_proj_{}"
    assert survivors == {"class_token", "encoder.pos_embedding"} | {
        attention.format(block, kind) for block in range(3) for kind in ("weight", "bias")
    }
