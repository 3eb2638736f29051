"""Patches left out of transformers of many families, against passes by hand on the tokens that stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import transformers
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from towers import tower

from explainers.base import Need
from explainers.models.classifier import Classifier
from explainers.models.clip import Clip
from explainers.requirements import unmet
from families import condition, pixels, stirred

SIZES = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 2, "num_classes": 5}


def made(name: str, **options: object) -> nn.Module:
    """A small network of timm."""
    return stirred(lambda: timm.create_model(name, **(SIZES | options)))


def chosen(tokens: Tensor, keep: Tensor) -> Tensor:
    """(T,) bool: the prefix, and the patches that stay."""
    return F.pad(keep, (tokens.shape[1] - len(keep), 0), value=True)


def vit(network: nn.Module, inputs: Tensor, keep: Tensor) -> Tensor:
    tokens = network._pos_embed(network.patch_embed(inputs))
    tokens = network.norm_pre(tokens.flatten(1, -2)[:, chosen(tokens, keep)])
    for block in network.blocks:
        tokens = block(tokens)
    return network.forward_head(network.norm(tokens))


def eva(network: nn.Module, inputs: Tensor, keep: Tensor) -> Tensor:
    """The rotation of each patch stays with it."""
    tokens, rope = network._pos_embed(network.patch_embed(inputs))
    tokens = network.norm_pre(tokens[:, chosen(tokens, keep)])
    for block in network.blocks:
        tokens = block(tokens, rope=None if rope is None else rope[keep])
    return network.forward_head(network.norm(tokens))


def beit(network: nn.Module, inputs: Tensor, keep: Tensor) -> Tensor:
    """The bias of each pair of tokens stays with it."""
    tokens = network.patch_embed(inputs)
    tokens = torch.cat([network.cls_token.expand(len(tokens), -1, -1), tokens], 1)
    stay = chosen(tokens, keep)
    tokens = (tokens if network.pos_embed is None else tokens + network.pos_embed)[:, stay]
    for block in network.blocks:
        bias = block.attn._get_rel_pos_bias()[:, :, stay][..., stay]
        block.attn._get_rel_pos_bias = lambda bias=bias: bias
        tokens = block(tokens)
        del block.attn._get_rel_pos_bias
    return network.forward_head(network.norm(tokens))


def cait(network: nn.Module, inputs: Tensor, keep: Tensor) -> Tensor:
    tokens = network.blocks((network.patch_embed(inputs) + network.pos_embed)[:, keep])
    return network.forward_head(network.norm(network.forward_cls(tokens)))


def convit(network: nn.Module, inputs: Tensor, keep: Tensor) -> Tensor:
    """The distances between patches stay with them; the class token joins before the last block."""
    tokens = (network.patch_embed(inputs) + network.pos_embed)[:, keep]
    for u, block in enumerate(network.blocks):
        if u == network.local_up_to_layer:
            tokens = torch.cat([network.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        else:
            block.attn.rel_indices = block.attn.get_rel_indices(len(keep))[:, keep][:, :, keep]
        tokens = block(tokens)
    return network.forward_head(network.norm(tokens))


def clip_of(trunk: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The logits of a CLIP are the scaled cosines of what its tower gives with the classes."""

    def by_hand(network: Clip, inputs: Tensor, keep: Tensor) -> Tensor:
        found = F.normalize(trunk(network.visual.trunk, inputs, keep), dim=1)
        return network.logit_scale * found @ network.class_embeddings.T

    return by_hand


# network, the pass by hand, whether patches are dropped, whether some patch is needed, prefix tokens
FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], bool, bool, int]] = {
    "deit3": (lambda: made("deit3_small_patch16_224"), vit, True, False, 1),
    "registers": (lambda: made("vit_small_patch14_reg4_dinov2", patch_size=16), vit, True, False, 5),
    "clip": (lambda: made("vit_base_patch16_clip_224"), vit, True, False, 1),
    "map": (lambda: made("vit_base_patch16_siglip_224"), vit, True, True, 0),
    "mean and maximum": (
        lambda: made("vit_tiny_patch16_224", global_pool="avgmax", class_token=False),
        vit,
        True,
        True,
        0,
    ),
    "beit, class token": (lambda: made("beit_base_patch16_224", global_pool="token"), beit, False, False, 1),
    "beit, mean": (lambda: made("beit_base_patch16_224"), beit, False, True, 1),
    "cait": (lambda: made("cait_xxs24_224"), cait, True, False, 0),
    "convit": (lambda: made("convit_tiny", local_up_to_layer=2), convit, False, False, 0),
    "dinov3": (lambda: made("vit_small_patch16_dinov3", global_pool="token"), eva, False, False, 5),
    "dynamic size": (lambda: made("vit_tiny_patch16_224", dynamic_img_size=True), vit, True, False, 1),
    "eva02, mean": (lambda: made("eva02_tiny_patch14_224", patch_size=16), eva, False, True, 1),
    "open_clip EVA01": (lambda: tower("EVA01"), clip_of(eva), True, False, 1),
    "open_clip EVA02": (lambda: tower("EVA02"), clip_of(eva), False, False, 1),
    "open_clip MobileCLIP-B": (lambda: tower("MobileCLIP-B"), clip_of(vit), True, False, 1),
}


def keeps() -> Tensor:
    """(4, 16) with rows of 16, 5, 5 and 9 patches."""
    order = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)).argsort(1)
    return order < torch.tensor([[16], [5], [5], [9]])


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_some_patches_are_those_of_a_network_that_has_no_others(name: str) -> None:
    make, by_hand, drops, needs, prefix = FAMILIES[name]
    network, keep = make(), keeps()
    with torch.no_grad(), Classifier(network, input_size=(64, 64)) as classifier:
        before = condition(network)
        found = classifier.logits_of_patches(pixels(4), keep)
        patches = classifier.patches
        assert (patches.drops, patches.needs_patches) == (drops, needs)
        assert (patches.layout.prefix_tokens, patches.layout.grid) == (prefix, (4, 4))
        assert patches.length(5) == prefix + (5 if drops else 16)
        assert condition(network) == before
        whole = classifier.logits(pixels(4))
        torch.testing.assert_close(found[:1], whole[:1], rtol=1e-4, atol=1e-4)
        for row in range(1, 4):
            expected = by_hand(network, pixels(4)[row : row + 1], keep[row])
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-3, atol=1e-4)
            assert (expected - whole[row]).abs().max() > 0.01


def of_hugging_face(family: str, options: dict[str, object]) -> nn.Module:
    """A classifier of Hugging Face as it is, which returns its logits among other things."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(
        **sizes, **options, image_size=64, patch_size=16, num_labels=5
    )
    return stirred(lambda: getattr(transformers, f"{family}ForImageClassification")(config))


def class_token(model: nn.Module, states: Tensor, present: Tensor) -> Tensor:
    return model.classifier(states[:, 0])


def mean(model: nn.Module, states: Tensor, present: Tensor) -> Tensor:
    patches = states[:, 1:].masked_fill(~present[..., None], 0).sum(1) / present.sum(1, keepdim=True)
    return model.classifier(model.beit.pooler.layernorm(patches))


def both(model: nn.Module, states: Tensor, present: Tensor) -> Tensor:
    shown = present[..., None]
    patches = (states[:, -16:] * shown).sum(1) / shown.sum(1)
    return model.classifier(torch.cat([states[:, 0], patches], 1))


@pytest.mark.parametrize(
    ("family", "options", "head", "drops"),
    [
        ("ViT", {}, class_token, True),
        ("Beit", {"use_relative_position_bias": True}, mean, False),
        ("Dinov2", {"mlp_ratio": 2}, both, True),
        ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 2}, both, True),
    ],
)
def test_logits_of_some_patches_are_those_behind_hugging_faces_own_attention_mask(
    family: str, options: dict[str, object], head: Callable[..., Tensor], drops: bool
) -> None:
    model, keep = of_hugging_face(family, options), keeps()
    with torch.no_grad():
        tower = model.base_model
        prefix = tower(pixel_values=pixels(1)).last_hidden_state.shape[1] - 16
        mask = F.pad(keep, (prefix, 0), value=True)
        model.set_attn_implementation("eager")  # where a mask is minus infinity, and can be added to a bias
        states = tower(pixel_values=pixels(4), attention_mask=mask).last_hidden_state
        expected = head(model, states, keep)
        model.set_attn_implementation("sdpa")
        with Classifier(model, input_size=(64, 64)) as classifier:
            found = classifier.logits_of_patches(pixels(4), keep)
            whole = classifier.logits(pixels(4))
            assert classifier.patches.drops is drops
            assert classifier.needs_patches is (head is not class_token)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[:1], whole[:1], rtol=1e-4, atol=1e-4)
    assert (found - whole)[1:].abs().amax(1).min() > 0.01


def test_a_tower_of_convolutions_with_attention_at_its_end_is_refused_in_one_line() -> None:
    refused = pytest.raises(ValueError, match=r"^Clip cannot be run on a subset of patches: no module takes")
    with torch.no_grad(), Classifier(tower("MobileCLIP-S1"), input_size=(256, 256)) as classifier, refused:
        classifier.logits_of_patches(pixels(1, (256, 256)), torch.ones(1, 64).bool())


def test_a_stem_whose_tokens_see_the_whole_image_is_refused() -> None:
    network = made("vit_tiny_r_s16_p8_224", img_size=224)  # its stem normalises over the whole image
    refused = pytest.raises(ValueError, match="its tokens see more of the image than their patches")
    with torch.no_grad(), Classifier(network, input_size=(224, 224)) as classifier, refused:
        classifier.logits_of_patches(pixels(1, (224, 224)), torch.arange(49)[None] % 3 > 0)


def test_patches_that_overlap_in_a_convolutional_stem_are_left_out_as_tokens() -> None:
    network = made("vit_tiny_r_s16_p8_224", img_size=224)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    keep = torch.arange(49)[None] % 3 > 0
    with torch.no_grad(), Classifier(network, input_size=(224, 224)) as classifier:
        found = classifier.logits_of_patches(pixels(1, (224, 224)), keep)
        expected = vit(network, pixels(1, (224, 224)), keep[0])
        assert classifier.patches.layout.grid == (7, 7)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["deit3", "beit, class token", "convit"])
def test_without_any_patch_the_class_token_answers_alike_for_all_images(name: str) -> None:
    with torch.no_grad(), Classifier(FAMILIES[name][0](), input_size=(64, 64)) as classifier:
        found = classifier.logits_of_patches(pixels(2), torch.zeros(2, 16, dtype=torch.bool))
        assert found.isfinite().all()
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["beit, mean", "map", "eva02, mean"])
def test_without_any_patch_a_pool_of_patches_has_no_logits(name: str) -> None:
    with (
        Classifier(FAMILIES[name][0](), input_size=(64, 64)) as classifier,
        pytest.raises(ValueError, match="no logits without any patch"),
    ):
        classifier.logits_of_patches(pixels(2), torch.zeros(2, 16, dtype=torch.bool))


@pytest.mark.parametrize("name", ["beit, class token", "cait"])
def test_gradients_reach_the_pixels_of_the_patches_that_stay_and_no_others(name: str) -> None:
    keep = torch.zeros(1, 16, dtype=torch.bool)
    keep[0, [2, 5]] = True
    with Classifier(FAMILIES[name][0](), input_size=(64, 64)) as classifier:
        inputs = pixels(1).requires_grad_()
        classifier.logits_of_patches(inputs, keep)[0, 0].backward()
    touched = inputs.grad[0].abs().amax(0).unflatten(0, (4, 16)).unflatten(2, (4, 16)).amax((1, 3)) > 0
    assert torch.equal(touched, keep.view(4, 4))


def test_a_mask_leaves_out_patches_whose_values_are_not_finite() -> None:
    keep = torch.arange(16)[None] > 3
    inputs = pixels(1)
    inputs[:, :, :16] = torch.nan  # the first row of patches
    with torch.no_grad(), Classifier(FAMILIES["beit, mean"][0](), input_size=(64, 64)) as classifier:
        found = classifier.logits_of_patches(inputs, keep)
        torch.testing.assert_close(found, classifier.logits_of_patches(pixels(1), keep))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(8, num_heads=2)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.attention(tokens)


class Toy(nn.Module):
    """A class token and 16 patches in two blocks, with something between the blocks or in place of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.positions = nn.Parameter(torch.rand(1, 17, 8))
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs).flatten(2).mT
        if self.kind == "columns":
            patches = patches.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        tokens = torch.cat([self.token.expand(patches.size(0), -1, -1), patches], 1)
        if self.kind == "no attention":
            return self.head((tokens + self.positions).relu().mean(1))
        tokens = self.first(tokens)
        if self.kind == "positions":
            tokens = tokens + self.positions
        if self.kind == "neighbours":
            tokens = tokens + tokens.roll(1, 1)
        if self.kind == "little":
            return self.head(self.token[0] + 1e-7 * self.second(tokens)[:, 0])
        return self.head(self.second(tokens)[:, 0])


def toy(kind: str) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(Toy(kind), layer="patches", input_size=(64, 64))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no attention", "no attention can be intercepted"),
        ("columns", "its tokens are no patches in the order of the rows of a grid"),
        ("neighbours", "patches that are left out of attention still reach the logits"),
        ("little", "leaving out patches changes the logits too little to be checked"),
    ],
)
def test_a_network_in_which_it_would_be_wrong_is_refused_in_one_line(kind: str, reason: str) -> None:
    with toy(kind) as classifier:
        assert classifier.lacks_patches == reason
        said = unmet({Need.PIXELS, Need.PATCHES}, classifier)
        told = "needs a vision transformer that runs on a subset of its patch tokens; of this network, "
        assert said == told + reason
        with pytest.raises(ValueError, match=f"^Toy cannot be run on a subset of patches: {reason}$"):
            classifier.embed(pixels(1))


@pytest.mark.parametrize(("kind", "drops"), [("plain", True), ("positions", False)])
def test_patches_are_masked_where_positions_are_added_behind_the_first_block(kind: str, drops: bool) -> None:
    with toy(kind) as classifier:
        assert classifier.patches.drops is drops


def test_finding_takes_few_passes_and_is_done_once() -> None:
    passes: list[int] = []
    with Classifier(FAMILIES["beit, class token"][0](), input_size=(64, 64)) as classifier:
        last = classifier.network.norm
        last.register_forward_hook(lambda *call: passes.append(len(call[1][0])))
        assert classifier.supports_patches
        assert 0 < len(passes) <= 20
        once = len(passes)
        assert classifier.patch_grid == (4, 4)
        assert len(passes) == once
