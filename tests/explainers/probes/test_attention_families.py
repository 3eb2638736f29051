"""Attention of families that came later, against what Hugging Face's models say of themselves, and timm's."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from timm.layers import Attention, apply_rot_embed_cat
from torch import Tensor, nn
from towers import tower

from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.probes.attention import attention_tokens, explicit_attention, unread_attention
from explainers.rollout import GenericAttention, Rollout
from families import pixels, stirred

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
# family: (options of its configuration, prefix tokens, tokens that the head reads)
FAMILIES: dict[str, tuple[dict[str, object], int, list[int]]] = {
    "ViT": ({}, 1, [0]),
    "DeiT": ({}, 2, [0]),
    "Beit": ({"use_relative_position_bias": True}, 1, [*range(1, 17)]),
    "Dinov2": ({"mlp_ratio": 2}, 1, [*range(17)]),
    "Dinov2WithRegisters": ({"mlp_ratio": 2, "num_register_tokens": 2}, 3, [0, *range(3, 19)]),
    "Siglip": ({}, 0, [*range(16)]),
    "CLIP": ({}, 1, [*range(1, 17)]),
    "DINOv3ViT": ({"num_register_tokens": 4}, 5, [0]),
}


class HuggingFace(nn.Module):
    """A classifier of a family, from pixels to logits; DINOv3 has none of its own."""

    def __init__(self, family: str) -> None:
        super().__init__()
        options, _, _ = FAMILIES[family]
        config = getattr(transformers, f"{family}Config")
        if family in {"Siglip", "CLIP"}:
            settings = config(vision_config=SIZES | options, num_labels=5)
        else:
            settings = config(**SIZES, **options, num_labels=5)
        self.head = nn.Linear(32, 5) if family == "DINOv3ViT" else None
        kind = f"{family}Model" if self.head else f"{family}ForImageClassification"
        settings._attn_implementation = "sdpa"
        self.model = getattr(transformers, kind)(settings)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.model(pixel_values=inputs)
        return found.logits if self.head is None else self.head(found.pooler_output)


def hugging_face(family: str) -> HuggingFace:
    return stirred(lambda: HuggingFace(family), spread=2.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_are_those_the_model_gives_out_itself(family: str) -> None:
    network = hugging_face(family)
    matrices: list[Tensor] = []
    with torch.no_grad():
        with explicit_attention(matrices.append):
            logits = network(pixels(2))
        torch.testing.assert_close(logits, network(pixels(2)), rtol=1e-4, atol=1e-5)
        network.model.set_attn_implementation("eager")
        expected = network.model(pixel_values=pixels(2), output_attentions=True).attentions
    # SigLIP computes a pool as well, which its classifier does not read.
    assert len(expected) == 3
    assert len(matrices) == (4 if family == "Siglip" else 3)
    for found, given in zip(matrices, expected, strict=False):
        torch.testing.assert_close(found, given, rtol=1e-4, atol=1e-6)
        assert found.std(-1).mean() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_and_the_rows_that_the_head_reads_are_found(family: str) -> None:
    _, prefix, rows = FAMILIES[family]
    with Classifier(hugging_face(family), input_size=(64, 64)) as classifier:
        found = attention_tokens(classifier)
    assert (found.layout.prefix_tokens, found.layout.grid) == (prefix, (4, 4))
    assert found.read.nonzero().flatten().tolist() == rows
    assert found.reaching == (0, 1, 2)


@pytest.mark.parametrize("family", ["Beit", "Siglip", "DINOv3ViT", "Dinov2"])
def test_rollout_is_the_product_of_the_matrices_that_the_model_gives_out(family: str) -> None:
    """Of the class token's row if the head reads that token, and of the mean of the patches' rows if not."""
    network = hugging_face(family)
    _, prefix, rows = FAMILIES[family]
    with Classifier(network, input_size=(64, 64)) as classifier:
        targets = torch.tensor([1, 0])
        batch = Batch(pixels(2), targets, torch.arange(2))
        maps = Rollout(classifier, Rollout.Parameters()).explain(batch).maps
        generic = GenericAttention(classifier, GenericAttention.Parameters()).explain(batch).maps
        network.model.set_attn_implementation("eager")
        inputs = pixels(2).requires_grad_()
        given = network.model(pixel_values=inputs, output_attentions=True)
        logits = given.logits if network.head is None else network.head(given.pooler_output)
        gradients = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), given.attentions)
    product, relevance = (torch.eye(16 + prefix).expand(2, -1, -1) for _ in range(2))
    for matrix, gradient in zip(given.attentions, gradients, strict=True):
        product = (0.5 * matrix.mean(1) + 0.5 * torch.eye(16 + prefix)) @ product
        relevance = relevance + (matrix * gradient).relu().mean(1) @ relevance
    chosen = [0] if rows[0] < prefix else rows
    for found, whole in [(maps, product), (generic, relevance - torch.eye(16 + prefix))]:
        expected = whole[:, chosen].mean(1)[:, prefix:].unflatten(1, (4, 4)).detach()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
        assert found.max() > 1.2 * found.min()


class ByHand(nn.Module):
    """Attention as people write it themselves, with products or with einsum."""

    def __init__(self, einsum: bool) -> None:
        super().__init__()
        self.einsum = einsum
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.einsum:
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / 2
            mixed = torch.einsum("bhij,bhjd->bhid", nn.functional.softmax(scores, dim=-1), v)
        else:
            mixed = torch.matmul(torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("einsum", [False, True])
def test_attention_written_by_hand_is_that_of_a_library_with_the_same_weights(einsum: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, theirs = ByHand(einsum), Attention(8, num_heads=2, qkv_bias=True)
        tokens = torch.randn(3, 5, 8, requires_grad=True)
    theirs.load_state_dict(ours.state_dict())
    seen: list[tuple[list[Tensor], Tensor]] = []
    for module in (ours, theirs):
        matrices: list[Tensor] = []
        with explicit_attention(matrices.append) as watch:
            output = module(tokens)
        seen.append((matrices, torch.autograd.grad(output.square().sum(), matrices)[0]))
        assert (watch.calls, watch.unread) == (1, 0)
    torch.testing.assert_close(seen[0][0][0], seen[1][0][0])
    torch.testing.assert_close(seen[0][1], seen[1][1])


POOL = "one attention is of 1 by {} tokens, as in a pool or a pyramid"
SMALL = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("eva02_tiny_patch14_224", None),
        ("beit_base_patch16_224", None),
        ("vit_small_patch16_dinov3", None),
        ("deit3_small_patch16_224", None),
        (
            "vit_base_patch16_siglip_224",
            POOL.format(16),
        ),
        ("cait_xxs24_224", POOL.format(17)),
        ("xcit_nano_12_p16_224", POOL.format(17)),
        ("convit_tiny", "its blocks attend over different numbers of tokens: [16, 17]"),
    ],
)
def test_which_of_timms_families_can_be_read_and_why_not(name: str, reason: str | None) -> None:
    options = {"local_up_to_layer": 1} if name == "convit_tiny" else {}
    size = {"patch_size": 16} if name.startswith("eva02") else {}
    with (
        torch.random.fork_rng(),
        Classifier(timm.create_model(name, **SMALL, **options, **size), input_size=(64, 64)) as classifier,
    ):
        assert unread_attention(classifier) == reason


def queries_and_keys(module: nn.Module, tokens: Tensor) -> Tensor:
    """(2, B, heads, T, d) of an attention module of timm, whose class token comes first."""
    if getattr(module, "qkv", None) is None:
        both = torch.cat([module.q_proj(tokens), module.k_proj(tokens)], 2)
    else:
        biases = [getattr(module, f"{name}_bias", None) for name in "qkv"]
        bias = module.qkv.bias if biases[0] is None else torch.cat(biases)
        both = nn.functional.linear(tokens, module.qkv.weight, bias)[..., : 2 * tokens.shape[2]]
    return both.unflatten(2, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4)


@pytest.mark.parametrize("family", ["EVA01", "EVA02", "MobileCLIP-B"])
def test_matrices_of_open_clips_towers_are_the_softmax_of_their_queries_and_keys(family: str) -> None:
    network, expected = tower(family), []

    def see(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        q, k = queries_and_keys(module, args[0])
        if kwargs.get("rope") is not None:  # EVA02 rotates the patches by their places
            turned = apply_rot_embed_cat(torch.stack([q, k])[:, :, :, 1:], kwargs["rope"])
            q, k = torch.cat([torch.stack([q, k])[:, :, :, :1], turned], 3)
        expected.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))

    modules = [block.attn for block in network.visual.trunk.blocks]
    handles = [module.register_forward_pre_hook(see, with_kwargs=True) for module in modules]
    matrices: list[Tensor] = []
    with torch.no_grad():
        with explicit_attention(matrices.append):
            logits = network(pixels(2))
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(logits, network(pixels(2)), rtol=1e-4, atol=1e-4)
    assert len(matrices) == len(modules)
    for found, given in zip(matrices, expected, strict=True):
        torch.testing.assert_close(found, given, rtol=1e-4, atol=1e-6)
        assert found.std(-1).mean() > 0.01
    with Classifier(network, input_size=(64, 64)) as classifier:
        assert attention_tokens(classifier).read.nonzero().flatten().tolist() == [0]


def test_attention_at_the_end_of_convolutions_is_refused_in_one_line() -> None:
    with Classifier(tower("MobileCLIP-S1"), input_size=(256, 256)) as classifier:
        assert unread_attention(classifier) == "its tokens are no patches in the order of the rows of a grid"
