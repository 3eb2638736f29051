"""Masks and fills against SciPy and in closed form."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

import toys
from explainers.base import PresetParameters
from explainers.numerics.masking import gaussian_blur, kernel_blur, rescaled
from rounding import rounding


@pytest.mark.parametrize(("size", "sigma"), [((40, 30), 3.0), ((8, 11), 10.0)])
def test_the_blur_is_scipys_also_where_it_is_wider_than_the_input(
    size: tuple[int, int], sigma: float
) -> None:
    inputs = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = gaussian_blur(inputs, sigma)
    for image, blurred in zip(inputs.numpy(), found.numpy(), strict=True):
        expected = [gaussian_filter(channel.astype(np.float64), sigma, mode="reflect") for channel in image]
        np.testing.assert_allclose(blurred, np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("size", "sigma"), [(11, 5.0), (49, 100.0), (7, 1.0), (1, 0.4)])
def test_the_kernel_is_an_impulse_filtered_on_its_own_array_with_zeros_beyond_the_image(
    size: int, sigma: float
) -> None:
    """RISE's and PAMI's kernels, and narrow ones, by a convolution in two dimensions and in float64."""
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    kernel = gaussian_filter(impulse, sigma)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    inputs = torch.rand(2, 3, 60, 52, generator=torch.Generator().manual_seed(0))
    found = kernel_blur(inputs, size, sigma).double().numpy()
    for image, blurred in zip(inputs.double().numpy(), found, strict=True):
        expected = np.stack([convolve2d(channel, kernel, mode="same") for channel in image])
        # A pixel is a sum of products down, and then of as many across.
        np.testing.assert_allclose(blurred, expected, atol=rounding(2 * size), rtol=0)


def test_the_wide_kernel_is_nearly_a_box_and_not_a_gaussian_that_was_cut() -> None:
    """PAMI's kernel on a step: the folded Gaussian is flat within 1e-5, the cut one is 2.5e-3 away."""
    step = torch.zeros(1, 1, 120, 120)
    step[..., 60:] = 1
    found = kernel_blur(step, 49, 100.0)[0, 0, 60].double().numpy()
    box = np.convolve(step[0, 0, 60].numpy(), np.full(49, 1 / 49), mode="same")
    weights = np.exp(-0.5 * (np.arange(-24, 25) / 100) ** 2)
    cut = np.convolve(step[0, 0, 60].numpy(), weights / weights.sum(), mode="same")
    assert np.abs(found - box).max() < 2e-5
    assert np.abs(found - cut).max() > 1e-3


def test_masks_are_rescaled_one_by_one_and_constant_ones_become_zero() -> None:
    masks = torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]], [[-4.0, 0.0], [0.0, -2.0]]])
    expected = [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.5]]]
    assert rescaled(masks).tolist() == expected


def test_fills_are_the_mean_that_is_subtracted_black_white_and_the_blurred_input() -> None:
    with toys.vit() as classifier:
        inputs = toys.inputs(2)
        assert classifier.fill(inputs, "mean").flatten().tolist() == [0.5, 0.5, 0.5]
        assert classifier.fill(inputs, "black").flatten().tolist() == [0.0, 0.0, 0.0]
        assert classifier.fill(inputs, "white").flatten().tolist() == [1.0, 1.0, 1.0]
        assert torch.equal(classifier.fill(inputs, "blur"), gaussian_blur(inputs, 10))


class Costly(PresetParameters):
    """Parameters with a preset."""

    FAST: ClassVar = {"samples": 5}
    samples: int = 100
    other: int = 1


def test_a_preset_changes_defaults_and_what_is_given_beside_it_wins() -> None:
    assert Costly().samples == 100
    assert Costly(preset="fast").samples == 5
    assert Costly(preset="fast", samples=7).samples == 7
    assert Costly(preset="fast").other == 1
    with pytest.raises(ValidationError, match="preset"):
        Costly(preset="slow")


def test_parameters_with_a_preset_are_the_same_again_from_what_a_run_stores() -> None:
    for parameters in (Costly(), Costly(preset="fast"), Costly(preset="fast", samples=7)):
        assert Costly(**parameters.model_dump(mode="json")) == parameters
