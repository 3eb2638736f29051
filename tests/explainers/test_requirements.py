"""What a classifier lacks of an explainer's needs is found before any work, and said in one phrase."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import families
import toys
from explainers.base import Batch, Need
from explainers.models.classifier import Classifier
from explainers.registry import explainers
from explainers.requirements import unmet

SIZE = (64, 64)


def family(name: str, **options: str) -> Classifier:
    network = families.randomised(families.FAMILIES[name][0]())
    return Classifier(network, input_size=SIZE, **options)


@pytest.mark.parametrize("name", ["resnet", "densenet", "swin", "swin_v2"])
def test_cam_serves_heads_that_pool_with_the_weights_of_their_last_layer(name: str) -> None:
    with family(name) as classifier:
        assert unmet(frozenset({Need.POOLED}), classifier) is None
        linear = [module for module in classifier.network.modules() if isinstance(module, nn.Linear)][-1]
        pixels = families.pixels(2)
        with torch.inference_mode():
            activations = classifier.activations(pixels)
        batch = Batch(pixels, torch.tensor([3, 1]), torch.arange(2), activations)
        cam = explainers.get("cam")(classifier, None).explain(batch).maps
        features = classifier.spatial(activations)
        expected = torch.einsum("bd,bdhw->bhw", linear.weight[[3, 1]], features)
        torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        explainer = explainers.get("ablationcam")(classifier, None)
        closed = explainer.explain(batch).maps
        explainer.per_mean = None
        by_passes = explainer.explain(batch).maps
    close = 1e-3 * float(by_passes.abs().max())
    torch.testing.assert_close(closed, by_passes, rtol=1e-2, atol=close)


@pytest.mark.parametrize("name", ["vgg", "vit", "convnext"])
def test_cam_is_refused_where_more_than_pooling_and_a_linear_layer_follows(name: str) -> None:
    with family(name) as classifier:
        lacking = unmet(frozenset({Need.POOLED}), classifier)
    assert lacking is not None
    assert lacking.startswith(
        "needs a head that is global average pooling and one linear layer, and the head behind '"
    )


def test_second_derivatives_are_refused_where_the_head_has_none() -> None:
    with toys.conv_mlp() as classifier:
        assert unmet(frozenset({Need.CURVATURE}), classifier) is None
    with family("mobilenet_v3", layer="features.8") as classifier:
        assert unmet(frozenset({Need.GRADIENTS}), classifier) is None
        lacking = unmet(frozenset({Need.CURVATURE}), classifier)
    assert lacking is not None
    assert "cannot be; name a later layer" in lacking


class _Encoder(nn.Module):
    """A transformer as one writes it with torch.nn's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 16, stride=16)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.layers = nn.Sequential(layer)
        self.head = nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patches(inputs).flatten(2).mT
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        return self.head(self.layers(tokens)[:, 0])


def test_attention_of_torchs_own_encoder_layers_is_read_past_their_fused_kernel() -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    with Classifier(_Encoder(), layer="layers.0:input", input_size=SIZE) as classifier:
        assert unmet(frozenset({Need.ATTENTION}), classifier) is None
        pixels = families.pixels(2)
        batch = Batch(pixels, torch.tensor([0, 1]), torch.arange(2))
        for name in ("rollout", "generic_attention"):
            maps = explainers.get(name)(classifier, None).explain(batch).maps
            assert maps.shape == (2, 4, 4)
            assert maps.flatten(1).std(1).gt(0).all()
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_attention_and_patches_are_refused_where_there_are_none(name: str) -> None:
    with family(name) as classifier:
        said = unmet(frozenset({Need.ATTENTION}), classifier)
        assert said.startswith("needs a vision transformer whose attention can be read; of this network, ")
        said = unmet(frozenset({Need.PATCHES}), classifier)
        assert said.startswith(
            "needs a vision transformer that runs on a subset of its patch tokens; of this network, "
        )
