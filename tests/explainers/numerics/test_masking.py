"""Masks and fills against SciPy and in closed form."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

import toys
from explainers.base import PresetParameters
from explainers.numerics.masking import gaussian_blur, rescaled


@pytest.mark.parametrize(("size", "sigma"), [((40, 30), 3.0), ((8, 11), 10.0)])
def test_the_blur_is_scipys_also_where_it_is_wider_than_the_input(
    size: tuple[int, int], sigma: float
) -> None:
    inputs = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = gaussian_blur(inputs, sigma)
    for image, blurred in zip(inputs.numpy(), found.numpy(), strict=True):
        expected = [gaussian_filter(channel.astype(np.float64), sigma, mode="reflect") for channel in image]
        np.testing.assert_allclose(blurred, np.stack(expected), atol=1e-5)


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
