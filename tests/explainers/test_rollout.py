"""Rollout and gradient-weighted attention against per-image products in NumPy, and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm import create_model
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPAttention

import families
from explainers.base import Batch, Explanation, Status
from explainers.models.classifier import Classifier
from explainers.models.clip import Clip, HuggingFaceVit
from explainers.rollout import GenericAttention, Rollout
from rounding import rounding


def wide() -> nn.Module:
    """Patches on a 4x6 grid behind a class token."""
    sizes = {"img_size": (64, 96), "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
    return create_model("vit_tiny_patch16_224", **sizes)


def open_clip_tower(**kwargs: object) -> nn.Module:
    return OpenClipTower(64, 16, width=32, layers=3, heads=2, mlp_ratio=2, output_dim=7, **kwargs)


def hugging_face_tower() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {"image_size": 64, "patch_size": 16, **sizes}
    return HuggingFaceVit(CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=7)))


def clip(tower: nn.Module) -> nn.Module:
    return Clip(tower, torch.eye(7), logit_scale=100.0, text_fingerprint=bytes(32))


# network, its target layer, the number of prefix tokens, the tokens whose rows are read
NETWORKS = {
    "torchvision": (families.FAMILIES["vit"][0], None, 1, [0]),
    "timm": (families.FAMILIES["timm_vit"][0], None, 1, [0]),
    "wide": (wide, None, 1, [0]),
    "registers": (families.FAMILIES["timm_vit_registers"][0], None, 3, [0]),
    "distilled": (families.FAMILIES["timm_deit_distilled"][0], None, 2, [0]),
    "mean": (families.FAMILIES["timm_vit_mean"][0], None, 0, range(16)),
    "mean_class_token": (families.FAMILIES["timm_vit_mean_class_token"][0], None, 1, range(1, 17)),
    "clip": (lambda: clip(open_clip_tower()), None, 1, [0]),
    "clip_mean": (lambda: clip(open_clip_tower(pool_type="avg")), None, 1, range(1, 17)),
    "clip_hugging_face": (lambda: clip(hugging_face_tower()), None, 1, [0]),
    "unknown": (open_clip_tower, "transformer", 1, [0]),
}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request: pytest.FixtureRequest):
    make, layer, prefix, rows = NETWORKS[request.param]
    size = (64, 96) if request.param == "wide" else (64, 64)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = families.randomised(make())
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    with Classifier(network, layer=layer, input_size=size, mean=[0.4] * 3, std=[0.3] * 3) as classifier:
        yield classifier, prefix, list(rows)


def batch_of(classifier: Classifier, count: int = 3, forwards: int = 64) -> Batch:
    pixels = families.pixels(count, classifier.input_size)
    targets = torch.arange(count) % classifier.num_classes
    return Batch(pixels, targets, torch.arange(count), forwards=forwards)


def explain(cls: type, classifier: Classifier, batch: Batch) -> Explanation:
    return cls(classifier, cls.Parameters()).explain(batch)


class Reference:
    """Attention and its gradient of one image, block by block, without the code under test.

    Each module's output is computed once more from softmax(q k^T / sqrt d), in a hook that replaces it.
    """

    def __init__(self, classifier: Classifier, pixels: Tensor, target: int) -> None:
        self.matrices: list[Tensor] = []
        kinds = (Attention, nn.MultiheadAttention, CLIPAttention)
        modules = [module for module in classifier.network.modules() if isinstance(module, kinds)]
        handles = [module.register_forward_hook(self.replace, with_kwargs=True) for module in modules]
        logits = classifier.logits(pixels[None].clone().requires_grad_())
        for handle in handles:
            handle.remove()
        self.gradients = torch.autograd.grad(logits[0, target], self.matrices)

    def replace(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], _: object
    ) -> object:
        tokens, heads = (args[0] if args else kwargs["hidden_states"])[0], module.num_heads
        if isinstance(module, Attention):
            projected = module.qkv(tokens)
        elif isinstance(module, nn.MultiheadAttention):
            projected = tokens @ module.in_proj_weight.T + module.in_proj_bias
        else:
            projected = torch.cat([module.q_proj(tokens), module.k_proj(tokens), module.v_proj(tokens)], 1)
        q, k, v = (part.chunk(heads, 1) for part in projected.chunk(3, 1))
        d = q[0].shape[1]
        matrix = torch.stack([torch.softmax(q[h] @ k[h].T / d**0.5, 1) for h in range(heads)])
        self.matrices.append(matrix)
        mixed = torch.cat([matrix[h] @ v[h] for h in range(heads)], 1)[None]
        return module.proj(mixed) if isinstance(module, Attention) else (module.out_proj(mixed), None)

    def blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(m.detach().numpy(), g.numpy()) for m, g in zip(self.matrices, self.gradients, strict=True)]


def read(relevance: np.ndarray, prefix: int, rows: list[int], grid: tuple[int, int]) -> Tensor:
    return torch.from_numpy(relevance[rows].mean(0)[prefix:].reshape(grid).astype(np.float32))


def test_rollout_is_the_product_of_attention_matrices_image_by_image(case) -> None:
    """Abnar and Zuidema: A~ of a block is (0.5 A + 0.5 I) times A~ of the block before."""
    classifier, prefix, rows = case
    batch = batch_of(classifier)
    maps = explain(Rollout, classifier, batch).maps
    for image, found in enumerate(maps):
        product = None
        for attention, _ in Reference(classifier, batch.inputs[image], 0).blocks():
            mixing = 0.5 * attention.mean(0) + 0.5 * np.eye(attention.shape[1])
            product = mixing if product is None else mixing @ product
        expected = read(product, prefix, rows, classifier.grid)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        assert product.sum(1) == pytest.approx(1, abs=1e-5)
        assert found.max() > 1.2 * found.min()


def test_generic_attention_follows_the_equations_image_by_image(case) -> None:
    """Chefer et al.: A_bar = mean over heads of (gradient * A)+ (eq. 5), R = R + A_bar R (eq. 6)."""
    classifier, prefix, rows = case
    batch = batch_of(classifier)
    maps = explain(GenericAttention, classifier, batch).maps
    for image, found in enumerate(maps):
        relevance = None
        blocks = Reference(classifier, batch.inputs[image], int(batch.targets[image])).blocks()
        for attention, gradient in blocks:
            relevance = np.eye(attention.shape[1]) if relevance is None else relevance
            a_bar = np.zeros_like(relevance)
            for head in range(len(attention)):
                a_bar += np.maximum(gradient[head] * attention[head], 0) / len(attention)
            relevance = relevance + a_bar @ relevance
        expected = read(relevance - np.eye(len(relevance)), prefix, rows, classifier.grid)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5 * float(expected.max()))
        assert found.max() > 1.2 * found.min()


def close(expected: Explanation) -> float:
    """What rounding may do on the way through three blocks and back, of some 300 products each."""
    return rounding(2 * 3 * 300, magnitude=float(expected.maps.max()))


@pytest.mark.parametrize("cls", [Rollout, GenericAttention])
def test_neither_chunks_nor_inference_mode_matter(case, cls: type) -> None:
    classifier, _, _ = case
    expected = explain(cls, classifier, batch_of(classifier))
    with torch.inference_mode():
        found = explain(cls, classifier, batch_of(classifier, forwards=2))
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=close(expected))
    assert found.maps.shape == (3, *classifier.grid)
    assert found.maps.dtype == torch.float32


@pytest.mark.parametrize("cls", [Rollout, GenericAttention])
def test_an_image_that_is_not_finite_is_reported_alone(case, cls: type) -> None:
    classifier, _, _ = case
    clean, broken = batch_of(classifier), batch_of(classifier)
    broken.inputs[1, 0, 30, 30] = float("inf")
    expected, found = explain(cls, classifier, clean), explain(cls, classifier, broken)
    assert found.statuses == [Status.OK, Status.NOT_FINITE, Status.OK]
    whole, part = expected.maps[[0, 2]], found.maps[[0, 2]]
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=close(expected))


def test_only_generic_attention_depends_on_the_target(case) -> None:
    classifier, _, _ = case
    batch = batch_of(classifier)
    other = Batch(batch.inputs, batch.targets + 1, batch.seeds)
    rollout = [explain(Rollout, classifier, each).maps for each in (batch, other)]
    generic = [explain(GenericAttention, classifier, each).maps for each in (batch, other)]
    assert torch.equal(*rollout)
    assert not torch.allclose(*generic, rtol=0.05)


class Planted(nn.Module):
    """Blocks whose class token attends to token 3 only, and whose other tokens attend to all alike.

    Tokens are the unit vectors of their positions, whatever the pixels, and a number beside them that only
    the values read. The values' first number is ``worth`` of the token, and the logits are plus and minus
    this number of the class token.
    """

    def __init__(self, worth: list[float], blocks: int, sharpness: float = 1000.0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 1, 4, stride=4)
        self.blocks = nn.Sequential(*(Attention(6, num_heads=1) for _ in range(blocks)))
        for block in self.blocks:
            nn.init.zeros_(block.qkv.weight)
            block.qkv.weight.data[3, 0] = sharpness  # the class token asks for what token 3 has
            block.qkv.weight.data[6:11, :5] = torch.eye(5)
            block.qkv.weight.data[12, :5] = torch.tensor(worth)
            block.qkv.weight.data[17, 5] = 1.0
            nn.init.zeros_(block.proj.weight)
        self.blocks[-1].proj.weight.data[0, 0] = 1.0
        self.norm = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = F.pad(self.patches(inputs).flatten(2).mT, (5, 0, 1, 0)) + torch.eye(5, 6)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        number = self.norm(tokens)[:, 0, 0]
        return torch.stack([number, -number], 1)


def planted(worth: list[float], blocks: int = 1, sharpness: float = 1000.0) -> Classifier:
    return Classifier(Planted(worth, blocks, sharpness), layer="norm", input_size=(8, 8))


def test_rollout_shows_the_one_patch_the_class_token_attends_to() -> None:
    with planted([1.0] * 5) as classifier:
        maps = explain(Rollout, classifier, batch_of(classifier, 2)).maps
    torch.testing.assert_close(maps, torch.tensor([[0.0, 0.0], [0.5, 0.0]]).expand(2, 2, 2))


def test_rollout_passes_on_in_the_second_block_what_that_patch_gathered_in_the_first() -> None:
    """0.5 (0.5 e0 + 0.5 e3) + 0.5 (0.5 e3 + 0.5 mean of all five tokens), over the patches."""
    with planted([1.0] * 5, blocks=2) as classifier:
        maps = explain(Rollout, classifier, batch_of(classifier, 1)).maps
    torch.testing.assert_close(maps[0], torch.tensor([[0.05, 0.05], [0.55, 0.05]]))


def test_generic_attention_is_attention_times_worth_where_that_helps_the_target() -> None:
    """Attention of the class token is 1/5 everywhere, and its gradient each token's worth."""
    worth = [5.0, 1.0, -2.0, 3.0, 0.0]
    with planted(worth, sharpness=0.0) as classifier:
        explanation = explain(GenericAttention, classifier, batch_of(classifier, 2))
    torch.testing.assert_close(explanation.maps[0], torch.tensor([[0.2, 0.0], [0.6, 0.0]]))
    torch.testing.assert_close(explanation.maps[1], torch.tensor([[0.0, 0.4], [0.0, 0.0]]))


def test_a_patch_that_only_speaks_against_the_target_leaves_an_all_zero_map() -> None:
    with planted([0.0, 9.0, 9.0, 2.0, 9.0]) as classifier:
        explanation = explain(GenericAttention, classifier, batch_of(classifier, 2))
    torch.testing.assert_close(explanation.maps[0], torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert explanation.statuses == [Status.OK, Status.ALL_ZERO]


def test_pooled_patches_without_any_evidence_leave_an_all_zero_map_too() -> None:
    network = families.FAMILIES["timm_vit_mean"][0]()
    nn.init.zeros_(network.head.weight[:2])
    with Classifier(network, input_size=(64, 64)) as classifier:
        explanation = explain(GenericAttention, classifier, batch_of(classifier, 2))
    assert explanation.statuses == [Status.ALL_ZERO] * 2


@pytest.mark.parametrize("cls", [Rollout, GenericAttention])
def test_a_network_without_such_attention_is_refused(cls: type) -> None:
    with (
        Classifier(families.FAMILIES["swin"][0](), input_size=(64, 64)) as classifier,
        pytest.raises(ValueError, match="its attention is within windows of 16 tokens"),
    ):
        cls(classifier, cls.Parameters())
