"""Means, intervals, ranks and paired comparisons against values known another way."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tasks.results.statistics import (
    Comparison,
    MetricSummary,
    PairedScores,
    comparisons,
    holm,
    metric_summaries,
    result_rows,
)


def plain(values: np.ndarray, better: str | None = "higher") -> PairedScores:
    values = np.atleast_2d(values)
    return PairedScores("m", better, ~np.isnan(values), values)


def summary_of(values: np.ndarray, better: str | None = "higher") -> MetricSummary:
    return metric_summaries([plain(values, better)], seed=0)[0]


def compared(scores: PairedScores, best: int, wanted: list[tuple[int, int]]) -> list[Comparison]:
    (summary,) = metric_summaries([scores], seed=0)
    return comparisons(scores, replace(summary, best=best), wanted)


def pooled(*curves: np.ndarray, better: str | None = "higher") -> PairedScores:
    """The largest point of the mean curve."""
    known = np.stack([~np.isnan(curve).any(1) for curve in curves])
    filled = [np.nan_to_num(curve) for curve in curves]
    return PairedScores(
        "m", better, known, np.empty((len(curves), 0)), lambda e: filled[e], lambda mean: mean.max(1)
    )


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=400)
    found = summary_of(values)
    other = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert found.low[0] == pytest.approx(other.low, abs=0.02)
    assert found.high[0] == pytest.approx(other.high, abs=0.02)


def test_the_interval_of_equal_values_is_a_point() -> None:
    found = summary_of(np.full(50, 0.25))
    assert [found.mean[0], found.low[0], found.high[0]] == pytest.approx([0.25] * 3)


def test_undefined_values_are_left_out_and_all_undefined_gives_nothing() -> None:
    known = np.random.default_rng(0).normal(5, 1, size=300)
    holes = np.concatenate([known, np.full(100, np.nan)])
    found = summary_of(np.stack([holes, np.full(400, np.nan)]))
    assert found.mean[0] == pytest.approx(known.mean())
    assert found.low[0] < known.mean() < found.high[0]
    assert found.high[0] - found.low[0] == pytest.approx(2 * 1.96 * known.std() / np.sqrt(300), rel=0.15)
    assert np.isnan([found.mean[1], found.low[1], found.high[1], found.rank[1], found.difference[1]]).all()
    assert found.best == 0


def test_contenders_share_their_resamples() -> None:
    values = np.random.default_rng(1).normal(size=200)
    found = summary_of(np.stack([values, values + 1]))
    assert found.low[1] - found.low[0] == pytest.approx(1)
    assert found.high[1] - found.high[0] == pytest.approx(1)
    assert found.difference.tolist() == pytest.approx([-1, 0])
    assert [found.difference_low[0], found.difference_high[0]] == pytest.approx([-1, -1])


def test_memory_bound_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(3, 40))
    whole = summary_of(values)
    monkeypatch.setattr("tasks.results.statistics._BLOCK", 40 * 7)
    parts = summary_of(values)
    np.testing.assert_allclose(parts.low, whole.low)
    np.testing.assert_allclose(parts.difference_high, whole.difference_high)


def test_the_difference_is_of_samples_that_both_have() -> None:
    values = np.array([[1.0, 2.0, np.nan, 100.0], [0.0, 1.0, 5.0, np.nan]])
    found = summary_of(values)
    assert found.best == 0
    assert found.difference.tolist() == [0, -1]
    assert found.mean.tolist() == pytest.approx([103 / 3, 2])


@pytest.mark.parametrize(
    ("better", "ranks", "best"), [("higher", [3, 1.5, 1.5], 1), ("lower", [1, 2.5, 2.5], 0)]
)
def test_ranks_follow_the_direction_and_ties_share_theirs(better: str, ranks: list[float], best: int) -> None:
    found = summary_of(np.array([[0.0, 0.0], [1.0, 3.0], [2.0, 2.0]]), better)
    assert found.rank.tolist() == ranks
    assert found.best == best


def test_a_reference_judges_nobody() -> None:
    found = summary_of(np.array([[0.0, 1.0], [1.0, 3.0]]), None)
    assert found.best is None
    assert np.isnan(found.rank).all()
    assert np.isnan(found.difference).all()


def test_a_number_of_the_dataset_comes_from_the_mean_curve_and_not_from_the_samples_best() -> None:
    """Each sample is best at another point: the mean of maxima would be 1."""
    found = metric_summaries([pooled(np.eye(4), np.full((4, 4), 0.5))], seed=0)[0]
    assert found.mean.tolist() == pytest.approx([0.25, 0.5])
    assert found.best == 1
    assert found.difference.tolist() == pytest.approx([-0.25, 0])
    assert found.low[0] > 0.2  # resamples see the maximum over points: biased upwards, as it must be
    assert [found.low[1], found.high[1]] == pytest.approx([0.5, 0.5])


def test_images_without_a_curve_are_left_out_of_the_mean_curve() -> None:
    curves = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 0.0]])
    found = metric_summaries([pooled(curves)], seed=0)[0]
    assert found.mean.tolist() == [0.5]
    assert found.common == 2


def test_numbers_of_the_dataset_are_paired_on_the_images_that_both_have() -> None:
    """Alone on its many images the first is at 0.9; on the two in common it is at 0, the other at 0.5."""
    one = np.array([[0.0], [0.0]] + [[1.0]] * 18)
    other = np.array([[0.5], [0.5]] + [[np.nan]] * 18)
    found = metric_summaries([pooled(one, other)], seed=0)[0]
    assert found.mean.tolist() == pytest.approx([0.9, 0.5])
    assert (found.common, found.best) == (2, 1)
    assert found.rank.tolist() == [2, 1]
    assert found.difference.tolist() == pytest.approx([-0.5, 0])
    assert [found.difference_low[0], found.difference_high[0]] == pytest.approx([-0.5, -0.5])
    (pair,) = compared(pooled(one, other), best=1, wanted=[])
    assert (pair.n, pair.difference) == (2, pytest.approx(-0.5))


def test_a_contender_without_any_curve_is_left_out_and_the_others_stand() -> None:
    found = metric_summaries([pooled(np.eye(2), np.full((2, 2), np.nan))], seed=0)[0]
    assert found.mean[0] == 0.5
    assert np.isnan([found.mean[1], found.low[1], found.rank[1], found.difference[1]]).all()
    assert (found.best, found.common) == (0, 2)


def test_references_that_are_the_same_for_all_have_the_same_interval() -> None:
    curves = np.random.default_rng(0).random((30, 3))
    found = metric_summaries([pooled(curves, curves, better=None)], seed=0)[0]
    assert found.low[0] == found.low[1] < found.mean[0]
    assert found.best is None


def test_ranks_and_the_best_are_of_the_images_that_all_have() -> None:
    """An explainer that fails where it is hard does not win by that."""
    values = np.array([[0.8, 0.2, 0.2, 0.2], [0.7, np.nan, np.nan, np.nan], [np.nan] * 4])
    found = summary_of(values)
    assert found.mean[:2].tolist() == pytest.approx([0.35, 0.7])
    assert (found.best, found.common) == (0, 1)
    assert found.rank[:2].tolist() == [1, 2]
    assert np.isnan(found.rank[2])


def test_all_that_are_first_are_the_best() -> None:
    summary, _ = result_rows(
        [plain(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))], ["a", "b", "c"], [], seed=0
    )
    assert [row["best"] for row in summary] == [True, True, False]


def test_comparisons_are_wilcoxons_with_holms_correction() -> None:
    values = np.random.default_rng(5).normal([[0.0], [0.3], [0.4], [0.1]], 1, size=(4, 60))
    found = compared(plain(values, "higher"), best=2, wanted=[(0, 3), (1, 3), (2, 3)])
    assert [(c.one, c.other) for c in found] == [(0, 2), (1, 2), (3, 2), (0, 3), (1, 3)]
    p = np.array([stats.wilcoxon(values[c.one], values[c.other]).pvalue for c in found])
    assert [c.p_value for c in found] == pytest.approx(p)
    assert [c.p_holm for c in found] == pytest.approx(holm(p))


def test_holms_correction_of_a_known_example_leaves_out_what_was_not_compared() -> None:
    assert holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])).tolist() == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.array([np.nan])).tolist() == pytest.approx([np.nan], nan_ok=True)


def test_wins_count_ties_half_and_follow_the_direction() -> None:
    values = np.array([[1.0, 1.0, 2.0, 0.0, np.nan], [1.0, 0.0, 3.0, 5.0, 1.0]])
    (higher,) = compared(plain(values, "higher"), best=1, wanted=[])
    (lower,) = compared(plain(values, "lower"), best=1, wanted=[])
    assert (higher.n, higher.wins, lower.wins) == (4, 0.375, 0.625)
    assert higher.difference == pytest.approx(-5 / 4)


def test_equal_contenders_and_those_without_common_samples_have_defined_outcomes() -> None:
    values = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, np.nan], [np.nan, np.nan, 3.0]])
    same, apart = compared(plain(values, "lower"), best=0, wanted=[])
    assert (same.p_value, same.p_holm, same.wins, same.difference) == (1, 1, 0.5, 0)
    assert apart.n == 0
    assert np.isnan([apart.p_value, apart.p_holm, apart.wins, apart.difference]).all()


def test_rows_have_the_best_against_everyone_and_what_was_asked_for() -> None:
    values = np.array([[0.9, 0.8, 0.9], [0.1, 0.2, 0.1], [0.5, 0.5, 0.4]])
    scores = [plain(values, "higher"), replace(plain(values, None), metric="area")]
    summary, compared = result_rows(scores, ["gradcam", "random", "rise"], [(0, 1), (2, 1)], seed=0)
    assert [(row["explainer"], row["best"], row["rank"]) for row in summary[:3]] == [
        ("gradcam", True, 1),
        ("random", False, 3),
        ("rise", False, 2),
    ]
    pairs = [(row["explainer"], row["against"], row["best"]) for row in compared]
    assert pairs == [
        ("random", "gradcam", True),
        ("rise", "gradcam", True),
        ("rise", "random", False),
    ]
    by_name = {row["explainer"]: row for row in summary[:3]}
    assert by_name["rise"]["p_holm"] == compared[1]["p_holm"]
    assert np.isnan(by_name["gradcam"]["p_holm"])
    assert {row["metric"] for row in compared} == {"m"}
