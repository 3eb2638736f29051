"""The head on few tokens beside the whole head, on the transformers for which it holds and on others."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import toys
from explainers.models.classifier import Classifier
from explainers.probes import few_tokens as module
from explainers.probes.few_tokens import few_tokens
from families import FAMILIES
from rounding import TOYS


def built(network: nn.Module, layer: str | None, size: int = 64) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Classifier(network, layer=layer, input_size=(size, size))


def vit(layer: str = "blocks.1:input", **options: object) -> Classifier:
    small = {"img_size": 96, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    return built(timm.create_model("vit_tiny_patch16_224", **small, **options), layer, 96)


def hugging_face() -> Classifier:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=96,
        num_labels=5,
    )
    config.patch_size = 16

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = transformers.CLIPVisionModel(config)
            self.linear = nn.Linear(24, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(self.tower(inputs).pooler_output)

    network = Logits()
    blocks = [name for name, each in network.named_modules() if type(each).__name__ == "CLIPEncoderLayer"]
    return built(network, f"{blocks[1]}:input", 96)


def torchvision() -> Classifier:
    network, _, _, _ = FAMILIES["vit"]
    return built(network(), "encoder.layers.encoder_layer_1:input")


def registers() -> Classifier:
    network, _, _, _ = FAMILIES["timm_vit_registers"]
    return built(network(), "blocks.1:input")


@pytest.mark.parametrize("make", [vit, torchvision, registers, hugging_face])
def test_logits_on_few_tokens_are_those_of_the_whole_head(make: object) -> None:
    with make() as classifier, torch.inference_mode():
        few = few_tokens(classifier)
        assert few is not None
        U = classifier.units.count
        activations = classifier.activations(toys.inputs(2, classifier.input_size[0])).repeat_interleave(
            U + 1, 0
        )
        # Of every size, one set for each of two images.
        order = torch.rand(2 * (U + 1), U, generator=torch.Generator().manual_seed(0)).argsort(1)
        keep = order < torch.arange(U + 1).repeat(2)[:, None]
        expected = classifier.head(classifier.mask_units(activations, keep))
        widths = few.widths(keep)
        assert (widths >= keep.sum(1)).all()
        assert (widths[keep.sum(1) <= 3] == 4).all()
        for width in widths.unique().tolist():
            rows = widths == width
            found = few.logits(activations[rows], keep[rows], width)
            close = 2 * TOYS * max(1, float(expected.abs().max()))
            torch.testing.assert_close(found, expected[rows], rtol=1e-4, atol=close)
        assert (expected - expected[0]).abs().max() > 100 * close


def test_a_row_is_computed_in_the_same_way_whatever_other_rows_there_are() -> None:
    with vit() as classifier:
        keep = torch.arange(36) < torch.tensor([0, 3, 4, 7, 30, 35, 36])[:, None]
        few = few_tokens(classifier)
        assert few.widths(keep).tolist() == [4, 4, 8, 8, 32, 36, 36]
        assert few.widths(keep[2:3]).tolist() == [8]


@pytest.mark.parametrize(
    "make", [toys.conv_gap, toys.conv_mlp, lambda: vit(global_pool="avg", class_token=False)]
)
def test_a_head_that_is_another_on_few_tokens_runs_on_all(make: object) -> None:
    """Convolutions have no tokens; a mean over the patches would be one over those that are left."""
    with make() as classifier:
        assert few_tokens(classifier) is None


class _Positions(nn.Module):
    """Adds another vector to the token at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(1, 37, 24))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.vectors


class _Neighbours(nn.Module):
    """Adds to each token the one before it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + tokens.roll(1, 1)


@pytest.mark.parametrize("between", [_Positions, _Neighbours])
def test_a_head_in_which_positions_count_runs_on_all_tokens(between: type[nn.Module]) -> None:
    small = {"img_size": 96, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    network = timm.create_model("vit_tiny_patch16_224", **small)
    network.blocks.insert(2, between())
    with built(network, "blocks.1:input", 96) as classifier:
        assert few_tokens(classifier) is None


def test_the_head_is_compared_once_per_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Classifier] = []
    agrees = module._agrees
    monkeypatch.setattr(module, "_agrees", lambda *args: compared.append(args[0]) or agrees(*args))
    with vit() as first, vit() as second:
        for classifier in (first, first, second, first):
            assert few_tokens(classifier) is not None
        assert compared == [first, second]
