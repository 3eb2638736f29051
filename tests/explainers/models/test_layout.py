"""Reading activation shapes, and masking, laying out and weighting units, in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from explainers.models.layout import Layout, Units, layout_of

sides = st.integers(2, 12)


@given(h=sides, w=sides, stride=st.sampled_from([1, 4, 16]), channels=st.integers(13, 2048))
def test_maps_are_told_apart_from_channels_last_maps(h, w, stride, channels):
    size = (h * stride, w * stride)
    assert layout_of((channels, h, w), size, None) == Layout(
        (channels, h, w), Units("channels", channels), (h, w), 0
    )
    assert layout_of((h, w, channels), size, None) == Layout(
        (h, w, channels), Units("tokens", h * w), (h, w), 0
    )


@given(h=sides, w=sides, patch=st.sampled_from([8, 14, 16]), prefix=st.integers(0, 8))
def test_known_prefix_tokens_leave_the_grid_of_patches(h, w, patch, prefix):
    layout = layout_of((prefix + h * w, 32), (h * patch, w * patch), prefix)
    assert (layout.units, layout.grid, layout.prefix_tokens) == (Units("tokens", h * w), (h, w), prefix)


@given(side=st.integers(5, 40), prefix=st.integers(0, 8))
def test_unknown_prefix_tokens_are_what_a_square_grid_leaves_over(side, prefix):
    layout = layout_of((prefix + side * side, 32), (224, 224), None)
    assert (layout.grid, layout.prefix_tokens) == ((side, side), prefix)


def test_a_sequence_before_the_prefix_is_added_is_read_without_it():
    assert layout_of((196, 32), (224, 224), 1).prefix_tokens == 0


def test_maps_with_rounded_sides_are_still_maps():
    assert layout_of((512, 8, 5), (225, 160), None).grid == (8, 5)


@pytest.mark.parametrize("shape", [(10,), (5, 20, 32, 32), (90, 64), (0, 64)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="neither a map"):
        layout_of(shape, (64, 64), None)


def test_channels_are_masked_and_summed_by_weight():
    layout = layout_of((2, 1, 3), (10, 30), None)
    maps = torch.tensor([[[[1.0, 2, 3]], [[4, 5, 6]]], [[[7, 8, 9]], [[1, 1, 1]]]])
    keep = torch.tensor([[True, False], [False, True]])
    assert layout.mask(maps, keep).tolist() == [[[[1, 2, 3]], [[0, 0, 0]]], [[[0, 0, 0]], [[1, 1, 1]]]]
    weights = torch.tensor([[10.0, -1.0], [0.0, 2.0]])
    assert layout.place(weights, maps).tolist() == [[[6, 15, 24]], [[2, 2, 2]]]
    assert layout.spatial(maps) is maps


def test_tokens_keep_their_prefix_and_are_laid_out_in_rows():
    layout = layout_of((1 + 6, 2), (20, 30), 1)
    tokens = torch.arange(14.0).view(1, 7, 2) + 1
    keep = torch.tensor([[True, False, False, False, False, True]])
    masked = layout.mask(tokens, keep)
    assert masked[0].tolist() == [[1, 2], [3, 4], [0, 0], [0, 0], [0, 0], [0, 0], [13, 14]]
    assert layout.spatial(tokens)[0, 0].tolist() == [[3, 5, 7], [9, 11, 13]]
    assert layout.place(torch.arange(6.0)[None], tokens)[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_channels_last_maps_are_tokens_on_the_same_grid():
    layout = layout_of((2, 3, 5), (20, 30), None)
    maps = torch.rand(1, 5, 2, 3)
    tokens = maps.permute(0, 2, 3, 1)
    keep = torch.tensor([[True, False, True, False, True, False]])
    assert torch.equal(layout.spatial(tokens), maps)
    expected = maps * torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    assert torch.equal(layout.spatial(layout.mask(tokens, keep)), expected)


def test_masking_removes_what_is_not_finite():
    layout = layout_of((1, 2, 2), (4, 4), None)
    maps = torch.full((1, 1, 2, 2), torch.inf)
    assert layout.mask(maps, torch.tensor([[False]])).tolist() == [[[[0, 0], [0, 0]]]]
