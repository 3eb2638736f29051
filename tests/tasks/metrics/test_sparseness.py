"""The Gini index against known values and its other definition."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks.metrics.sparseness import gini

VALUES = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 1, 1, 1], 0.0),
        ([0, 0, 0, 1], 0.75),
        ([0, 0, 1, 1], 0.5),
        ([1, 2, 3, 4], 0.25),
        ([4, 1, 3, 2], 0.25),
        ([0.5], 0.0),
    ],
)
def test_known_vectors_have_their_known_index(values, expected):
    assert gini(torch.tensor([values], dtype=torch.float32)).item() == expected


@given(VALUES)
def test_the_index_is_half_the_relative_mean_difference_of_all_pairs(values):
    assume(values.sum() > 1e-3)
    values = values.astype(np.float64)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini(torch.from_numpy(values)[None]).item() == pytest.approx(expected, abs=1e-9)


def test_a_large_flat_map_is_exactly_zero_and_a_single_pixel_exactly_the_highest():
    n = 224 * 224
    single = torch.zeros(n)
    single[123] = 0.7
    assert gini(torch.stack([torch.ones(n), torch.full((n,), 0.1), single])).tolist() == [
        0.0,
        0.0,
        pytest.approx(1 - 1 / n, abs=1e-7),
    ]


def test_a_map_of_zeros_or_of_nan_has_no_index():
    values = torch.rand(3, 10)
    values[1], values[2] = 0.0, torch.nan
    assert gini(values).isnan().tolist() == [False, True, True]
