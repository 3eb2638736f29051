"""Occlusion in closed form on a linear classifier, and against Captum's."""

from __future__ import annotations

import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from pydantic import ValidationError

import toys
from explainers.base import Batch
from explainers.occlusion import Occlusion, coverage, scaled
from explainers.probes.masked_forward import target_probability
from rounding import TOYS, rounding


@pytest.mark.parametrize(("window", "stride"), [(70, 42), (56, 56), (224, 1)])
@pytest.mark.parametrize("kind", ["conv_mlp", "vit"])
def test_maps_equal_captums(kind: str, window: int, stride: int) -> None:
    """The window 10 in steps of 6 pixels leaves 4 pixels over, which the last, cut off, has to cover."""
    with toys.CLASSIFIERS[kind]() as classifier:
        batch = toys.batch(classifier, 2)
        found = Occlusion(classifier, Occlusion.Parameters(window=window, stride=stride)).explain(batch)
        w, s = scaled(window, 32), scaled(stride, 32)
        captum = CaptumOcclusion(
            lambda inputs: target_probability(classifier, classifier.logits(inputs), batch.targets)
        )
        expected = captum.attribute(
            batch.inputs,
            (3, w, w),
            (3, s, s),
            baselines=classifier.mean[None].expand_as(batch.inputs),
        )
        torch.testing.assert_close(found.maps, expected[:, 0], atol=TOYS, rtol=0)
        windows = len(coverage(32, w, s)) ** 2
        assert found.details["forward_passes"].tolist() == [windows + 1] * 2


def test_on_a_linear_classifier_a_pixel_loses_the_mean_weight_of_the_windows_over_it() -> None:
    """On an input that is not square: lengths scale with its height and its width."""
    H, W = 16, 24
    weight = torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))
    weight /= weight.sum()
    with toys.proportion(weight) as classifier:
        batch = Batch(toys.inputs(2, 32)[:, :, :H, :W], torch.tensor([0, 0]), torch.arange(2))
        found = Occlusion(classifier, Occlusion.Parameters(window=56, stride=28)).explain(batch).maps
    for image in range(2):
        total, count = torch.zeros(H, W), torch.zeros(H, W)
        worth = (batch.inputs[image] * weight).sum(0)
        for top in range(0, H - 4 + 1, 2):
            for left in range(0, W - 6 + 1, 3):
                total[top : top + 4, left : left + 6] += worth[top : top + 4, left : left + 6].sum()
                count[top : top + 4, left : left + 6] += 1
        # Sums of 3 H W products, of which about half is left, and of windows.
        close = rounding(3 * H * W + 8, magnitude=0.5)
        torch.testing.assert_close(found[image], total / count, atol=close, rtol=0)


def test_windows_follow_until_all_is_covered_and_the_border_cuts_off_the_last() -> None:
    assert coverage(7, 3, 3).int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert coverage(6, 3, 3).shape == (2, 6)
    assert coverage(5, 5, 2).shape == (1, 5)
    assert coverage(224, 15, 8).shape == (28, 224)


def test_lengths_are_scaled_and_never_below_a_pixel() -> None:
    assert [scaled(15, size) for size in (224, 448, 32)] == [15, 30, 2]
    assert scaled(1, 32) == 1


def test_steps_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ValidationError, match="stride: steps of 9 leave gaps between windows of 8"):
        Occlusion.Parameters(window=8, stride=9)
    fast = Occlusion.Parameters(preset="fast")
    assert (fast.window, fast.stride) == (32, 16)
