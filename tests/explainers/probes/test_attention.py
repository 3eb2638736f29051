"""Attention matrices against what the libraries compute themselves, and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import families
from explainers.base import Need
from explainers.models.classifier import Classifier
from explainers.probes.attention import attention_tokens, explicit_attention, unread_attention
from explainers.requirements import unmet

SIZES = {"image_size": 64, "patch_size": 16}


def open_clip_tower(**kwargs: object) -> nn.Module:
    return OpenClipTower(**SIZES, width=32, layers=3, heads=2, mlp_ratio=2, output_dim=8, **kwargs)


class HuggingFace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        self.tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES, **sizes, projection_dim=7))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixel_values=pixels).image_embeds


_TIMM = (
    "timm_vit",
    "timm_vit_registers",
    "timm_vit_mean",
    "timm_vit_mean_class_token",
    "timm_deit_distilled",
)
MAKERS = {name: families.FAMILIES[name][0] for name in (*_TIMM, "vit")} | {
    "open_clip": open_clip_tower,
    "huggingface": HuggingFace,
}


def transformer(name: str) -> nn.Module:
    """In eval mode, without parameters that ask for gradients, and with attention far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = families.randomised(MAKERS[name]()).eval().requires_grad_(False)
        for key, parameter in network.named_parameters():
            if key.endswith(("qkv.weight", "in_proj_weight", "q_proj.weight", "k_proj.weight")):
                parameter.normal_(std=2 * parameter.shape[1] ** -0.5)
    return network


@pytest.fixture(params=MAKERS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return transformer(request.param)


def attentions(network: nn.Module) -> list[nn.Module]:
    kinds = ("Attention", "MultiheadAttention", "CLIPAttention")
    return [module for module in network.modules() if type(module).__name__ in kinds]


def by_hand(module: nn.Module, tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """softmax(q k^T / sqrt d) and v, (B, heads, T, T) and (B, heads, T, d), in NumPy from the weights."""
    D = tokens.shape[-1]
    if isinstance(module, Attention):
        projections = list(zip(module.qkv.weight.split(D), module.qkv.bias.split(D), strict=True))
    elif isinstance(module, nn.MultiheadAttention):
        projections = list(zip(module.in_proj_weight.split(D), module.in_proj_bias.split(D), strict=True))
    else:
        projections = [(p.weight, p.bias) for p in (module.q_proj, module.k_proj, module.v_proj)]
    q, k, v = (
        (tokens.numpy() @ weight.numpy().T + bias.numpy())
        .reshape(*tokens.shape[:2], module.num_heads, -1)
        .transpose(0, 2, 1, 3)
        for weight, bias in projections
    )
    exponentials = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]))
    return exponentials / exponentials.sum(-1, keepdims=True), v


def inputs_of(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    """What the attention modules are given when the network runs as it is, with fused kernels."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in attentions(network)]
    with torch.no_grad():
        network(pixels)
    for handle in handles:
        handle.remove()
    return seen


def ignore(matrix: Tensor) -> None:
    pass


def read(network: nn.Module, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    matrices: list[Tensor] = []
    with explicit_attention(matrices.append):
        logits = network(pixels)
    return matrices, logits


def test_the_logits_stay_the_same(network: nn.Module) -> None:
    pixels = families.pixels()
    _, logits = read(network, pixels)
    torch.testing.assert_close(logits, network(pixels), rtol=1e-5, atol=1e-5)


def test_matrices_are_those_of_q_and_k_by_hand_and_their_rows_sum_to_one(network: nn.Module) -> None:
    pixels = families.pixels()
    matrices, _ = read(network, pixels)
    tokens = inputs_of(network, pixels)
    assert len(matrices) == len(tokens) == 3
    for matrix, module, given in zip(matrices, attentions(network), tokens, strict=True):
        expected, _ = by_hand(module, given)
        np.testing.assert_allclose(matrix, expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:3]))
        assert matrix.std(-1).mean() > 0.01


def test_gradients_are_what_reaches_the_heads_output_times_the_values(network: nn.Module) -> None:
    """With O = A V, the gradient on A is that on O times V^T; no parameter asks for a gradient."""
    pixels = families.pixels().requires_grad_()
    outputs: list[Tensor] = []

    def note(module: nn.Module, args: object, output: object) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(note) for module in attentions(network)]
    matrices, logits = read(network, pixels)
    score = logits[:, 1].sum()
    on_matrices = torch.autograd.grad(score, matrices, retain_graph=True)
    on_outputs = torch.autograd.grad(score, outputs)
    for handle in handles:
        handle.remove()
    tokens = inputs_of(network, pixels.detach())
    for module, given, found, projected in zip(
        attentions(network), tokens, on_matrices, on_outputs, strict=True
    ):
        _, v = by_hand(module, given)
        projection = module.proj if hasattr(module, "proj") else module.out_proj
        on_heads = (projected @ projection.weight).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
        expected = on_heads.numpy() @ v.transpose(0, 1, 3, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        assert np.abs(expected).max() > 1e-4


@pytest.mark.parametrize("name", ["timm_vit", "vit", "open_clip"])
def test_gradients_are_finite_differences_of_the_logit(name: str) -> None:
    """Through the later blocks too: one entry of one matrix is moved, and everything behind it follows."""
    network = transformer(name).double()
    pixels = families.pixels(1).double()
    matrices, logits = read(network, pixels.requires_grad_())
    gradients = torch.autograd.grad(logits[0, 2], matrices)

    def moved(block: int, entry: tuple[int, ...], step: float) -> float:
        seen = 0

        def move(matrix: Tensor) -> None:
            nonlocal seen
            if seen == block:
                matrix[entry] += step
            seen += 1

        with torch.no_grad(), explicit_attention(move):
            return float(network(pixels)[0, 2])

    for block, entry in [(0, (0, 0, 0, 5)), (0, (0, 1, 7, 2)), (1, (0, 0, 0, 16)), (2, (0, 1, 0, 3))]:
        slope = (moved(block, entry, 1e-5) - moved(block, entry, -1e-5)) / 2e-5
        assert slope == pytest.approx(float(gradients[block][entry]), rel=1e-5, abs=1e-9)
        assert abs(slope) > 1e-6


def test_the_network_is_left_alone_and_nothing_is_read_outside_the_block(network: nn.Module) -> None:
    pixels = families.pixels(1)
    before = families.condition(network), [(sorted(vars(m)), m.forward) for m in network.modules()]
    seen: list[Tensor] = []

    def crash(matrix: Tensor) -> None:
        seen.append(matrix)
        raise KeyError

    with pytest.raises(KeyError), explicit_attention(crash):
        network(pixels)
    network(pixels)
    assert len(seen) == 1
    assert (families.condition(network), [(sorted(vars(m)), m.forward) for m in network.modules()]) == before


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_returns_what_it_returns_otherwise(batch_first: bool, average: bool) -> None:
    """(B, T, D) and (T, B, D), and its own weights for whoever asks for them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval().requires_grad_(False)
        tokens = torch.randn(4, 5, 12)
    expected = module(tokens, tokens, tokens, average_attn_weights=average)
    matrices: list[Tensor] = []
    with explicit_attention(matrices.append):
        found = module(tokens, tokens, tokens, average_attn_weights=average)
    torch.testing.assert_close(found, expected)
    assert matrices[0].shape == ((4, 3, 5, 5) if batch_first else (5, 3, 4, 4))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit", 1), ("timm_vit_registers", 3), ("timm_vit_mean", 0), ("timm_deit_distilled", 2)],
)
@pytest.mark.parametrize("layer", ["default", "patches"])
def test_the_tokens_are_found_whatever_the_target_layer(name: str, prefix: int, layer: str) -> None:
    patches = "encoder:input" if name == "vit" else "patch_embed"
    with Classifier(
        transformer(name), layer=patches if layer == "patches" else None, input_size=(64, 64)
    ) as classifier:
        tokens = attention_tokens(classifier).layout
    assert (tokens.prefix_tokens, tokens.grid) == (prefix, (4, 4))


class Blocks(nn.Module):
    """Attention over windows of 16 tokens, or over 64 tokens and then their means by fours."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.second = Attention(8, num_heads=2), Attention(8, num_heads=2)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.patches(inputs)
        if self.kind == "windows":
            windows = F.unfold(maps, 4, stride=4).unflatten(1, (8, 16)).permute(0, 3, 2, 1)
            tokens = self.second(self.first(windows.flatten(0, 1))).unflatten(0, (-1, 4))
            return self.head(tokens.mean((1, 2)))
        tokens = self.first(maps.flatten(2).mT)
        if self.kind == "pyramid":
            tokens = tokens.unflatten(1, (16, 4)).mean(2)
        return self.head(self.second(tokens).mean(1))


class Mixed(nn.Module):
    """A class token and 64 patches in two blocks that do more than attention, or in another way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.first, self.second = Attention(8, num_heads=2), Attention(8, num_heads=2)
        self.queries = nn.Parameter(torch.rand(1, 65, 8))
        self.across = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs).flatten(2).mT
        if self.kind == "columns first":
            patches = patches.unflatten(1, (8, 8)).transpose(1, 2).flatten(1, 2)
        token = self.token.expand(patches.size(0), -1, -1)
        if self.kind == "class token last":
            return self.head(self.second(self.first(torch.cat([patches, token], 1)))[:, -1])
        tokens = torch.cat([token, patches], 1)
        if self.kind == "side by side":
            return self.head((self.first(tokens) + self.second(tokens))[:, 0])
        tokens = tokens + self.first(tokens)
        if self.kind == "neighbours":
            tokens = tokens + tokens.roll(1, 1)
        if self.kind == "gate":
            tokens = tokens * tokens.softmax(-1)
        tokens = self.second(tokens)
        if self.kind == "queries":
            tokens, _ = self.across(self.queries.expand(patches.size(0), -1, -1), tokens, tokens)
        if self.kind == "linear attention at last":
            tokens = self.norm(tokens + tokens @ (tokens.mT @ tokens))
        return self.head(tokens[:, 0])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("plain", None),
        ("columns first", "its tokens are no patches in the order of the rows of a grid"),
        ("class token last", "its 65 tokens are no grid of patches behind tokens that are the same for all"),
        ("side by side", "its attention is computed side by side, and not block after block"),
        ("neighbours", "its tokens are mixed by more than attention"),
        ("linear attention at last", "its tokens are mixed by more than attention"),
        ("gate", "a softmax of it multiplies no values, so that some of its attention may be missed"),
        ("queries", "one attention has 65 queries that are no part of the image, as in a pool"),
    ],
)
def test_attention_that_does_not_say_how_patches_reach_the_logits_is_refused(
    kind: str, reason: str | None
) -> None:
    with (
        torch.random.fork_rng(),
        Classifier(Mixed(kind), layer="patches", input_size=(32, 32)) as classifier,
    ):
        said = unmet({Need.PIXELS, Need.ATTENTION}, classifier)
    if reason is None:
        assert said is None
    else:
        assert said.startswith("needs a vision transformer whose attention can be read; of this network, ")
        assert reason in said


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("global", None),
        ("windows", "its attention is within windows of 16 tokens"),
        ("pyramid", "its blocks attend over different numbers of tokens: [16, 64]"),
    ],
)
def test_attention_over_windows_or_shrinking_sequences_is_not_read(kind: str, reason: str | None) -> None:
    with (
        torch.random.fork_rng(),
        Classifier(Blocks(kind), layer="patches", input_size=(32, 32)) as classifier,
    ):
        assert unread_attention(classifier) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin", "its attention is within windows of 16 tokens"),
        ("resnet", "no attention can be intercepted"),
        ("convnext", "no attention can be intercepted"),
    ],
)
def test_windows_and_convolutions_are_refused_in_one_line(name: str, reason: str) -> None:
    with Classifier(families.FAMILIES[name][0](), input_size=(64, 64)) as classifier:
        lacking = unmet({Need.PIXELS, Need.ATTENTION}, classifier)
        said = f"needs a vision transformer whose attention can be read; of this network, {reason}"
        assert lacking == said
        with pytest.raises(ValueError, match=reason):
            attention_tokens(classifier)


def test_an_attentional_pool_is_not_misread_as_a_block() -> None:
    """As many queries as tokens, so that its matrix is square like those of the blocks."""
    pools = {"plain": {}, "pooled": {"attentional_pool": True, "attn_pooler_queries": 17}}
    for name, kwargs in pools.items():
        network = open_clip_tower(**kwargs)
        with Classifier(network, layer="conv1", input_size=(64, 64)) as classifier:
            assert (unread_attention(classifier) is None) is (name == "plain")
