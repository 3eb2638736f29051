"""Transformers on a subset of their patch tokens, against slow references."""

import pytest
import torch
from torch import nn

from explainers.models.classifier import Classifier
from families import FAMILIES, MEAN, STD, condition, normalised, pixels, randomised, small_vit

PATCHES = [name for name in FAMILIES if "vit" in name or "deit" in name]


def test_no_hook_is_left_between_calls():
    classifier = Classifier(small_vit(), input_size=(64, 64))
    before = condition(classifier.network)
    with pytest.raises(ValueError, match="keep has 5 columns for 16 patches"):
        classifier.logits_of_patches(pixels(), torch.ones(3, 5, dtype=torch.bool))
    assert condition(classifier.network) == before


def random_patches(seed=0):
    """(4, 16) with rows of 16, 5, 5 and 9 patches."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(4, 16, generator=generator).argsort(1)
    return order < torch.tensor([[16], [5], [5], [9]])


@pytest.mark.parametrize("name", PATCHES)
def test_all_patches_give_the_logits(name):
    classifier = Classifier(randomised(FAMILIES[name][0]()), input_size=(64, 64), mean=MEAN, std=STD)
    keep = torch.ones(4, 16, dtype=torch.bool)
    assert classifier.supports_patches
    with torch.no_grad():
        torch.testing.assert_close(
            classifier.logits_of_patches(pixels(4), keep), classifier.logits(pixels(4))
        )


@pytest.mark.parametrize("name", [name for name in PATCHES if name != "vit"])
def test_timm_patches_agree_with_blocks_run_by_hand_on_gathered_tokens(name):
    network = randomised(FAMILIES[name][0]())
    keep = random_patches()
    with torch.no_grad(), Classifier(network, input_size=(64, 64), mean=MEAN, std=STD) as classifier:
        result = classifier.logits_of_patches(pixels(4), keep)
        prefix = torch.ones(network.num_prefix_tokens, dtype=torch.bool)
        for row in range(4):
            tokens = network._pos_embed(network.patch_embed(normalised(pixels(4)[row : row + 1])))
            tokens = network.norm_pre(tokens[:, torch.cat([prefix, keep[row]])])
            for block in network.blocks:
                tokens = block(tokens)
            expected = network.forward_head(network.norm(tokens))[0]
            torch.testing.assert_close(result[row], expected, rtol=1e-5, atol=1e-5)
            assert row == 0 or not torch.allclose(expected, classifier.logits(pixels(4))[row], atol=1e-4)


def test_leaving_patches_out_is_masking_them_in_every_attention():
    network = randomised(small_vit())
    keep = random_patches()
    with torch.no_grad(), Classifier(network, input_size=(64, 64), mean=MEAN, std=STD) as classifier:
        result = classifier.logits_of_patches(pixels(4), keep)
        tokens = network._process_input(normalised(pixels(4)))
        tokens = torch.cat([network.class_token.expand(4, -1, -1), tokens], 1) + network.encoder.pos_embedding
        absent = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~keep], 1)
        for block in network.encoder.layers:
            inner = block.ln_1(tokens)
            attended, _ = block.self_attention(inner, inner, inner, key_padding_mask=absent)
            tokens = tokens + attended
            tokens = tokens + block.mlp(block.ln_2(tokens))
        expected = network.heads(network.encoder.ln(tokens)[:, 0])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_without_any_patch_a_class_token_still_answers():
    classifier = Classifier(randomised(small_vit()), input_size=(64, 64))
    logits = classifier.logits_of_patches(pixels(2), torch.zeros(2, 16, dtype=torch.bool))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[0], logits[1])  # it sees neither image


def test_gradients_pass_through_the_kept_patches_alone():
    classifier = Classifier(randomised(small_vit()), input_size=(64, 64))
    keep = torch.zeros(1, 16, dtype=torch.bool)
    keep[0, 5] = True  # second row, second column
    inputs = pixels(1).requires_grad_()
    classifier.logits_of_patches(inputs, keep)[0, 0].backward()
    touched = inputs.grad[0].abs().amax(0) > 0
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[16:32, 16:32] = True
    assert torch.equal(touched, expected)


def test_patches_are_refused_where_there_are_none():
    pooled = Classifier(FAMILIES["timm_vit_mean"][0](), input_size=(64, 64))
    with pytest.raises(ValueError, match="no logits without any patch"):
        pooled.logits_of_patches(pixels(1), torch.zeros(1, 16, dtype=torch.bool))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convolutional = Classifier(network, layer="0", input_size=(8, 8))
    assert not convolutional.supports_patches
    with pytest.raises(ValueError, match="Sequential cannot be run on a subset of patches"):
        convolutional.logits_of_patches(pixels(1, (8, 8)), torch.ones(1, 64, dtype=torch.bool))
