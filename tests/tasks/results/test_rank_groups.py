"""Ranks over metrics, against published numbers and SciPy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, kendalltau

from tasks.results.rank_groups import Ranks, rank_agreement, rank_groups


def ranks_of(values: list[list[float]]) -> Ranks:
    ranks = np.array(values)
    return Ranks([f"e{i}" for i in range(ranks.shape[1])], [f"m{i}" for i in range(len(ranks))], ranks)


def test_the_critical_difference_is_demsars() -> None:
    """Demšar 2006, section 3.2.4: 4 classifiers on 14 data sets; q is 2.569, and CD 1.25."""
    found = rank_groups(ranks_of([[3.143, 2.0, 2.893, 1.964]] * 14))
    assert found is not None
    assert found.difference == pytest.approx(1.25, abs=0.005)
    assert found.explainers == ["e3", "e1", "e2", "e0"]
    # The differences to the best are 0.04, 0.93 and 1.18.
    assert found.groups == [(0, 3)]


def test_groups_are_the_largest_ones_within_the_critical_difference() -> None:
    rng = np.random.default_rng(0)
    ranks = np.array([np.argsort(np.argsort(np.arange(8) + rng.normal(0, 1, 8))) + 1 for _ in range(30)])
    found = rank_groups(ranks_of(ranks.tolist()))
    assert found is not None
    assert found.p_value == pytest.approx(friedmanchisquare(*ranks.T).pvalue)
    near = abs(found.mean[:, None] - found.mean) <= found.difference
    alike = {(a, b) for a in range(8) for b in range(a + 1, 8) if near[a, b]}
    joined = {
        (a, b) for first, last in found.groups for a in range(first, last + 1) for b in range(a + 1, last + 1)
    }
    assert joined == alike
    assert 1 < len(found.groups) < 8
    assert not any(
        one != other and one[0] >= other[0] and one[1] <= other[1]
        for one in found.groups
        for other in found.groups
    )


def test_all_are_one_group_if_friedmans_test_tells_no_difference() -> None:
    for values in ([[1.0, 2, 3], [3, 2, 1]], [[2.0, 2, 2], [2, 2, 2]]):
        found = rank_groups(ranks_of(values))
        assert found is not None
        assert found.p_value == 1
        assert found.groups == [(0, 2)]


@pytest.mark.parametrize("values", [[[1.0, 2, 3]], [[1.0, 2]] * 5, [[]]])
def test_too_few_explainers_or_columns_are_not_compared(values: list[list[float]]) -> None:
    assert rank_groups(ranks_of(values)) is None


def test_explainers_without_any_rank_are_left_out_before_columns() -> None:
    nan = float("nan")
    whole = ranks_of([[1.0, nan, 2, 3], [nan, nan, 1, 2], [3.0, nan, 1, 2]]).complete()
    assert (whole.explainers, whole.columns) == (["e0", "e2", "e3"], ["m0", "m2"])
    assert whole.ranks.tolist() == [[1, 2, 3], [3, 1, 2]]


def test_ranks_are_taken_from_the_ranked_rows_of_the_summary() -> None:
    rows = [
        {"metric": metric, "explainer": explainer, "better": better, "rank": rank}
        for metric, better in (("a", "higher"), ("reference", None), ("b", "lower"))
        for explainer, rank in (("x", 1.0), ("y", 2.0))
    ]
    found = Ranks.of(pa.Table.from_pylist(rows))
    assert (found.explainers, found.columns) == (["x", "y"], ["a", "b"])
    assert found.ranks.tolist() == [[1, 2], [1, 2]]


@given(
    st.lists(st.lists(st.sampled_from([1.0, 1.5, 2, 3, 4, float("nan")]), min_size=5, max_size=5), max_size=4)
)
def test_agreement_is_kendalls_tau_over_common_explainers(values: list[list[float]]) -> None:
    found = rank_agreement(Ranks(list("abcde"), [str(i) for i in range(len(values))], np.array(values)))
    assert found.shape == (len(values),) * 2
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            pairs = [(a, b) for a, b in zip(one, other, strict=True) if not np.isnan([a, b]).any()]
            tau = kendalltau(*zip(*pairs, strict=True)).statistic if len(pairs) >= 3 else np.nan
            np.testing.assert_allclose(found[i, j], tau)
