"""The controls in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import toys
from explainers.base import Batch, Explanation, Status
from explainers.control_names import CONTROLS
from explainers.registry import explainers

SIZE = (6, 8)


class Sized:
    """All that a control asks of a classifier."""

    input_shape = (3, *SIZE)


def control(name: str, inputs: Tensor | None = None, **parameters: float) -> Explanation:
    inputs = torch.rand(3, 3, *SIZE) if inputs is None else inputs
    batch = Batch(inputs, torch.zeros(len(inputs), dtype=torch.int64), torch.arange(len(inputs)))
    cls = explainers.get(name)
    explainer = cls(Sized(), cls.Parameters(**parameters))
    explanation = explainer.explain(batch)
    assert explanation.maps.shape == (len(inputs), *explainer.describe().grid)
    return explanation


def test_the_controls_are_registered() -> None:
    assert set(CONTROLS) <= set(explainers.names())


def test_random_is_uniform_from_zero_to_below_one_and_set_by_the_seed_alone() -> None:
    class Large:
        input_shape = (3, 224, 224)

    cls = explainers.get("random")
    seeds = torch.tensor([5, 6, 5])
    batch = Batch(torch.zeros(3, 3, 1, 1), torch.zeros(3, dtype=torch.int64), seeds)
    maps = cls(Large(), cls.Parameters()).explain(batch).maps
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[1])
    assert maps.min() >= 0
    assert maps.max() < 1
    count = torch.histc(maps[0], 10, 0, 1)
    # Each tenth holds 5,018 of 50,176 pixels, give or take 67; 400 is six standard deviations.
    assert (count - 5017.6).abs().max() < 400
    neighbours = torch.corrcoef(torch.stack([maps[0, :, 1:].flatten(), maps[0, :, :-1].flatten()]))
    assert abs(neighbours[0, 1]) < 0.03


def test_center_gaussian_is_a_quarter_of_the_short_side_wide_and_symmetric() -> None:
    explanation = control("center_gaussian")
    heat = explanation.maps[0]
    sigma = 0.25 * 6
    expected = [
        [math.exp(-((y - 2.5) ** 2 + (x - 3.5) ** 2) / (2 * sigma**2)) for x in range(8)] for y in range(6)
    ]
    torch.testing.assert_close(heat, torch.tensor(expected))
    assert torch.equal(heat, heat.flip(0, 1))
    assert heat.argmax() in (2 * 8 + 3, 2 * 8 + 4, 3 * 8 + 3, 3 * 8 + 4)
    assert torch.equal(explanation.maps[0], explanation.maps[2])


def test_center_gaussian_takes_another_width_and_refuses_none() -> None:
    narrow = control("center_gaussian", sigma=0.1).maps[0]
    assert narrow[2, 2] / narrow[2, 3] == pytest.approx(math.exp(-(1.5**2 - 0.5**2) / (2 * 0.6**2)))
    with pytest.raises(ValidationError):
        control("center_gaussian", sigma=0)


def test_sobel_gives_half_a_step_on_both_sides_of_an_edge_and_nothing_elsewhere() -> None:
    inputs = torch.zeros(1, 3, *SIZE)
    inputs[..., 4:] = 1
    heat = control("sobel", inputs).maps[0]
    expected = torch.zeros(SIZE)
    expected[:, 3:5] = 0.5
    torch.testing.assert_close(heat, expected)


def test_sobel_measures_luminance_and_slopes_in_both_directions() -> None:
    """A slope of 0.01 a pixel across and 0.02 down, in green alone, which carries 0.587 of the luminance."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    inputs = torch.zeros(1, 3, *SIZE)
    inputs[0, 1] = 0.01 * x + 0.02 * y
    heat = control("sobel", inputs).maps[0]
    torch.testing.assert_close(heat[1:-1, 1:-1], torch.full((4, 6), 0.587 * math.hypot(0.01, 0.02)))


def test_sobel_says_that_a_flat_image_has_no_edges() -> None:
    assert control("sobel", torch.full((2, 3, *SIZE), 0.4)).statuses == [Status.ALL_ZERO] * 2


def test_all_ones_is_one_value_and_says_that_it_is_constant() -> None:
    explanation = control("all_ones")
    assert torch.equal(explanation.maps, torch.ones(3, 1, 1))
    assert explanation.statuses == [Status.CONSTANT] * 3


def test_controls_with_a_classifier_cover_its_inputs() -> None:
    with toys.conv_gap() as classifier:
        grids = [
            explainers.get(name)(classifier, explainers.get(name).Parameters()).describe().grid
            for name in CONTROLS
        ]
    assert grids == [(32, 32), (32, 32), (32, 32), (1, 1)]


def test_sobel_takes_the_mean_of_other_numbers_of_channels_for_luminance() -> None:
    inputs = torch.rand(2, 6, *SIZE, generator=torch.Generator().manual_seed(0))
    grey = inputs.mean(1, keepdim=True)
    expected = control("sobel", grey.expand(-1, 3, -1, -1)).maps  # whose weights add up to 1
    torch.testing.assert_close(control("sobel", inputs).maps, expected)
    torch.testing.assert_close(control("sobel", grey).maps, expected)
