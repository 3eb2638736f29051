"""Means, intervals and paired comparisons against values known another way."""

import numpy as np
import pytest
from scipy import stats

from tasks.summary import bootstrap


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=400)
    low, high = bootstrap(values[None], seed=0)
    other = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert low[0] == pytest.approx(other.low, abs=0.02)
    assert high[0] == pytest.approx(other.high, abs=0.02)


def test_bootstrap_of_equal_values_is_a_point() -> None:
    low, high = bootstrap(np.full((1, 50), 0.25), seed=0)
    assert low[0] == pytest.approx(0.25)
    assert high[0] == pytest.approx(0.25)


def test_undefined_values_are_left_out_and_all_undefined_gives_nothing() -> None:
    known = np.random.default_rng(0).normal(5, 1, size=300)
    holes = np.concatenate([known, np.full(100, np.nan)])
    low, high = bootstrap(np.stack([holes, np.full(400, np.nan)]), seed=0)
    assert low[0] < known.mean() < high[0]
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * known.std() / np.sqrt(300), rel=0.15)
    assert np.isnan([low[1], high[1]]).all()


def test_rows_share_their_resamples() -> None:
    values = np.random.default_rng(1).normal(size=200)
    low, high = bootstrap(np.stack([values, values + 1]), seed=0)
    assert low[1] - low[0] == pytest.approx(1)
    assert high[1] - high[0] == pytest.approx(1)
