"""Statistics of scores over a dataset: means, intervals, ranks and paired comparisons.

The contenders are the explainers of one run or of several runs. They are scored on the same images, so all
comparisons are paired. An image with several targets counts once, with the mean over its targets.

Shapes are E contenders, N images and R numbers, one per resample of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon
from scipy.stats import t as student

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RESAMPLES = 2000
TAILS = (2.5, 97.5)
_BLOCK = 4_000_000  # counts of drawn images that are in memory at a time


@dataclass(frozen=True)
class PairedScores:
    """The scores of all contenders in one column of a metric, on the same N images.

    A column has either one value per image, or one curve per image and a number for the whole dataset only,
    which is pooled from the mean curve.

    Attributes
    ----------
    metric, better
        The name of the column, and "higher", "lower" or None; see :class:`tasks.metrics.base.Column`.
    known
        (E, N), which images have a value or a curve.
    values
        (E, N), valid where ``known``. Empty for a pooled column.
    curves
        For a pooled column: gives the (N, points) curves of a contender by its index. Curves of images that
        are not known may hold anything.
    pool
        For a pooled column: makes (R,) numbers from (R, points) mean curves.
    """

    metric: str
    better: str | None
    known: Bools
    values: Floats
    curves: Callable[[int], Floats] | None = None
    pool: Callable[[Floats], Floats] | None = None

    def weighted_means(self, weights: Floats) -> Floats:
        """The mean of each contender, (E, R), with image n counted ``weights[n, r]`` times.

        It is NaN where no image counts.
        """
        complete = self.known.all()  # the usual case, in which one sum of weights serves all contenders
        counted = weights.sum(0)[None] if complete else self.known.astype(np.float64) @ weights
        sums = np.where(self.known, self.values, 0) @ weights
        return np.divide(sums, counted, out=np.full_like(sums, np.nan), where=counted > 0)


def _pooled_numbers(scores: PairedScores, curves: Floats, own: Bools, blocks: Iterable[Floats]) -> Floats:
    """Numbers (R,) of the whole dataset, from the (N, points) curves of the ``own`` (N,) images.

    There is one number for each column of the blocks of weights, (N, r) each, which say how often an image
    counts.
    """
    assert scores.pool is not None
    # With some hundred points per image, single precision is much faster and precise enough.
    mine, found = curves[own].T.astype(np.float32, copy=False), []
    for weights in blocks:
        drawn = weights[own].astype(np.float32)
        counts = drawn.sum(0)
        numbers = np.full(len(counts), np.nan)
        there = counts > 0
        if there.any():
            numbers[there] = scores.pool(((mine @ drawn[:, there]) / counts[there]).T.astype(np.float64))
        found.append(numbers)
    return np.concatenate(found)


@dataclass(frozen=True)
class MetricSummary:
    """Means, intervals, ranks and differences of all contenders in one column of a metric.

    Attributes
    ----------
    mean, low, high
        (E,) the number of the dataset with its 95 % percentile bootstrap interval over images (2,000
        resamples, which all columns and contenders share). Each contender is taken on the images that it
        has. The interval of a number that is the best over thresholds is biased upwards, as that number
        itself is.
    rank
        (E,) 1 for the best; ties share the mean of their ranks. Ranks are taken on the ``common`` images.
        NaN in a reference column, which is not ranked.
    common
        How many images are scored for every contender that has any score.
    best
        Index of the best contender, the first one if several are tied; None in a reference column.
    difference, difference_low, difference_high
        (E,) the paired difference to the best contender, on the images that both have, with its interval.
    """

    mean: Floats
    low: Floats
    high: Floats
    rank: Floats
    common: int
    best: int | None
    difference: Floats
    difference_low: Floats
    difference_high: Floats


@dataclass(frozen=True)
class Comparison:
    """Contender ``one`` against contender ``other``, on the images that both have.

    For a pooled column there are only ``n`` and ``difference``; the other numbers are NaN.

    Attributes
    ----------
    one, other
        Indices of the contenders.
    n
        How many images both have.
    difference
        Mean of ``one`` minus ``other``.
    wins
        Share of the images on which ``one`` is better, in [0, 1]. A tie counts half.
    p_value
        Two-sided Wilcoxon signed-rank test; 1 if no image differs.
    p_holm
        The p-value after Holm's correction for all comparisons of the column.
    """

    one: int
    other: int
    n: int
    difference: float
    wins: float
    p_value: float
    p_holm: float = np.nan


def metric_summaries(scores: Sequence[PairedScores], seed: int) -> list[MetricSummary]:
    """Summarise each column, with the same resamples of the images for all of them.

    Parameters
    ----------
    scores
        The columns, all on the same images.
    seed
        Seed of the resamples.
    """
    found: list[MetricSummary | None] = [_pooled_summary(s, seed) if s.pool else None for s in scores]
    plain = [each for each in scores if each.pool is None]
    made = iter(_plain_summaries(plain, seed))
    return [next(made) if summary is None else summary for summary in found]


def _plain_summaries(scores: Sequence[PairedScores], seed: int) -> list[MetricSummary]:
    """Summarise all columns that have a value per image; together, so that the draws are made once."""
    if not scores:
        return []
    N = scores[0].known.shape[1]
    whole = np.ones((N, 1))
    ranked = [_ranks(s, s.weighted_means(whole * _common_images(s)[:, None])[:, 0]) for s in scores]
    gaps = [
        None if best is None else _minus_best(s, best) for s, (_, best) in zip(scores, ranked, strict=True)
    ]
    means = [np.empty((len(s.known), RESAMPLES)) for s in scores]
    differences = [np.full((len(s.known), RESAMPLES), np.nan) for s in scores]
    start = 0
    for draws in _draws(N, seed):
        part = slice(start, start + draws.shape[1])
        start = part.stop
        for each, gap, mean, difference in zip(scores, gaps, means, differences, strict=True):
            mean[:, part] = each.weighted_means(draws)
            if gap is not None:
                difference[:, part] = gap.weighted_means(draws)
    return [
        MetricSummary(
            each.weighted_means(whole)[:, 0],
            *_interval(mean),
            rank,
            int(_common_images(each).sum()),
            best,
            np.full(len(mean), np.nan) if gap is None else gap.weighted_means(whole)[:, 0],
            *_interval(difference),
        )
        for each, (rank, best), gap, mean, difference in zip(
            scores, ranked, gaps, means, differences, strict=True
        )
    ]


def _pooled_summary(scores: PairedScores, seed: int) -> MetricSummary:
    """Summarise a pooled column, one contender after another: the curves of all may not fit into memory."""
    assert scores.curves is not None
    E, N = scores.known.shape
    common = _common_images(scores)
    mean, shared, numbers = np.empty(E), np.empty(E), np.empty((E, RESAMPLES))
    for e, own in enumerate(scores.known):
        curves = scores.curves(e)
        mean[e] = _pooled_numbers(scores, curves, own, [np.ones((N, 1))])[0]
        shared[e] = _pooled_numbers(scores, curves, common & own, [np.ones((N, 1))])[0]
        # A reference column does not depend on the explainer, so its resamples need not be computed again.
        same = scores.better is None and e and mean[e] == mean[e - 1]
        numbers[e] = numbers[e - 1] if same else _pooled_numbers(scores, curves, own, _draws(N, seed))
    rank, best = _ranks(scores, shared)
    difference, between = np.full(E, np.nan), np.full((E, 1), np.nan)
    if best is not None:
        difference, between = mean - mean[best], numbers - numbers[best]
        for e in range(E):
            if (scores.known[e] != scores.known[best]).any():
                difference[e] = _pooled_difference(scores, e, best, lambda: [np.ones((N, 1))])[0]
                between[e] = _pooled_difference(scores, e, best, lambda: _draws(N, seed))
    interval, around = _interval(numbers), _interval(between)
    return MetricSummary(mean, *interval, rank, int(common.sum()), best, difference, *around)


def _pooled_difference(
    scores: PairedScores, one: int, other: int, blocks: Callable[[], Iterable[Floats]]
) -> Floats:
    """Numbers (R,) of one contender minus those of another, on the images that both have."""
    assert scores.curves is not None
    both = scores.known[one] & scores.known[other]
    first = _pooled_numbers(scores, scores.curves(one), both, blocks())
    return first - _pooled_numbers(scores, scores.curves(other), both, blocks())


def _common_images(scores: PairedScores) -> Bools:
    """Which images (N,) are scored for every contender that has any score."""
    known = scores.known[scores.known.any(1)]
    return np.logical_and.reduce(known) & bool(len(known))


def _ranks(scores: PairedScores, mean: Floats) -> tuple[Floats, int | None]:
    """Ranks (E,) by these means, and the index of the first of the best contenders."""
    if scores.better is None or np.isnan(mean).all():
        return np.full_like(mean, np.nan), None
    signed = -mean if scores.better == "higher" else mean
    ranks: Floats = rankdata(signed, nan_policy="omit")
    return ranks, int(np.nanargmin(signed))


def comparisons(
    scores: PairedScores, summary: MetricSummary, wanted: Sequence[tuple[int, int]]
) -> list[Comparison]:
    """Compare every contender with the best one, and the ``wanted`` pairs; Holm-corrected together.

    Parameters
    ----------
    scores, summary
        A column and its summary. A reference column has no comparisons.
    wanted
        Pairs of indices of contenders. Pairs that contain the best one are left out, since it is compared
        with everyone anyway.
    """
    best = summary.best
    if best is None:
        return []
    pairs = [(one, best) for one in range(len(scores.known)) if one != best]
    pairs += [(one, other) for one, other in wanted if best not in (one, other)]
    found = [_compared(scores, summary, one, other) for one, other in pairs]
    corrected = holm(np.array([each.p_value for each in found]))
    return [replace(each, p_holm=float(p)) for each, p in zip(found, corrected, strict=True)]


def holm(p_values: Floats) -> Floats:
    """Correct n p-values (n,) for multiple comparisons after Holm (1979).

    The k-th smallest of m is multiplied by m + 1 - k and is at least as large as the corrected ones before
    it. NaN means that there was no comparison; it is not counted and stays NaN.
    """
    order = np.argsort(p_values)  # NaN last
    order = order[~np.isnan(p_values[order])]
    corrected = np.full_like(p_values, np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return corrected


def _compared(scores: PairedScores, summary: MetricSummary, one: int, other: int) -> Comparison:
    known = scores.known[one] & scores.known[other]
    n = int(known.sum())
    if not n:
        return Comparison(one, other, 0, np.nan, np.nan, np.nan)
    if scores.pool is not None:
        same_images = (scores.known[one] == scores.known[other]).all()
        gap = (
            summary.mean[one] - summary.mean[other]
            if same_images
            else _pooled_difference(scores, one, other, lambda: [np.ones((len(known), 1))])[0]
        )
        return Comparison(one, other, n, float(gap), np.nan, np.nan)
    difference = scores.values[one, known] - scores.values[other, known]
    better = difference if scores.better == "higher" else -difference
    wins = float((better > 0).mean() + (better == 0).mean() / 2)
    # SciPy's test is undefined if all differences are zero.
    p_value = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return Comparison(one, other, n, float(difference.mean()), wins, p_value)


def _minus_best(scores: PairedScores, best: int) -> PairedScores:
    """The difference of each contender to the best one, on the images that both have."""
    known = scores.known & scores.known[best]
    return PairedScores(scores.metric, None, known, scores.values - scores.values[best])


def _draws(images: int, seed: int) -> Iterator[Floats]:
    """How often each resample drew each image, (N, r), block by block; the same blocks for the same seed.

    These are counts, so that one matrix product serves all contenders and no values are gathered 2,000 times.
    """
    generator = np.random.default_rng(seed)
    size = max(1, min(RESAMPLES, _BLOCK // images))  # limits the memory
    for start in range(0, RESAMPLES, size):
        draws = np.empty((min(size, RESAMPLES - start), images))
        for row in draws:
            row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
        yield draws.T


def _interval(numbers: Floats) -> tuple[Floats, Floats]:
    """The ends (E,) of the percentile intervals of resampled numbers (E, R); NaN if all are undefined."""
    empty = np.asarray(np.isnan(numbers).all(1))
    low, high = np.nanpercentile(np.where(empty[:, None], 0, numbers), TAILS, axis=1)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def half_width(images: int, squares: Any) -> Any:
    """Return half the width of the 95 % interval (Student's t) of the mean of some numbers.

    Parameters
    ----------
    images
        How many numbers there are. With a single one, the result is NaN.
    squares
        The sum of their squared differences to the mean, or an array of such sums.
    """
    if images < 2:
        return np.full_like(squares, np.nan, dtype=np.float64)
    return student.ppf(0.975, images - 1) * np.sqrt(squares / (images - 1) / images)


def result_rows(
    scores: Sequence[PairedScores],
    contenders: Sequence[str],
    wanted: Sequence[tuple[int, int]],
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Summarise and compare the contenders in every column, as the rows of two tables.

    Parameters
    ----------
    scores
        The columns, all on the same images.
    contenders
        The names of the E contenders.
    wanted
        Pairs of indices of contenders to compare, in addition to those with the best one.
    seed
        Seed of the resamples.

    Returns
    -------
    summary
        One row per column and contender, with the fields of :class:`MetricSummary`. ``best`` is whether the
        contender has the first rank; ``p_value`` and ``p_holm`` compare it with the best one.
    comparisons
        One row per column and pair, with the fields of :class:`Comparison`: contender ``explainer`` against
        ``against``. ``best`` is whether the latter is the best one.
    """
    summary, compared = [], []
    for each, result in zip(scores, metric_summaries(scores, seed), strict=True):
        pairs = comparisons(each, result, wanted)
        against_best = {pair.one: pair for pair in pairs if pair.other == result.best}
        for e, contender in enumerate(contenders):
            fields = {key: float(v[e]) for key, v in vars(result).items() if isinstance(v, np.ndarray)}
            own = against_best.get(e)
            tested = (own.p_value, own.p_holm) if own else (np.nan, np.nan)
            summary.append(
                {"metric": each.metric, "better": each.better, "explainer": contender, **fields}
                | {"common": result.common, "best": fields["rank"] == np.nanmin([np.inf, *result.rank])}
                | {"p_value": tested[0], "p_holm": tested[1]}
            )
        for pair in pairs:
            names = {"explainer": contenders[pair.one], "against": contenders[pair.other]}
            numbers = {key: getattr(pair, key) for key in ("n", "difference", "wins", "p_value", "p_holm")}
            best = pair.other == result.best
            compared.append({"metric": each.metric, **names, "best": best, **numbers})
    return summary, compared
