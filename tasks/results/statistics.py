"""From one number an image to what can be said of a dataset: means, intervals, ranks, paired comparisons.

Everything is paired: the contenders, explainers of one run or of several, are scored on the same images. An
image with several targets counts once, with the mean over its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RESAMPLES = 2000
TAILS = (2.5, 97.5)
_BLOCK = 4_000_000  # numbers of draws in memory at a time


@dataclass(frozen=True)
class Contest:
    """One number of every contender on the same N images.

    Attributes
    ----------
    metric, better
        Its name, and "higher", "lower" or None: see :class:`tasks.metrics.base.Column`.
    known
        (E, N) which images have the number, or a curve.
    values
        (E, N), of what is known; empty for a number that belongs to the whole dataset.
    curves, pool
        Of such a number: what gives the (N, points) curves of a contender, whatever they are where nothing is
        known, and what makes (R,) numbers from (R, points) mean curves.
    """

    metric: str
    better: str | None
    known: Bools
    values: Floats
    curves: Callable[[int], Floats] | None = None
    pool: Callable[[Floats], Floats] | None = None

    def over(self, weights: Floats) -> Floats:
        """(E, R) means with each image counted as often as ``weights`` (N, R) says; NaN where nothing is."""
        whole = self.known.all()  # as a rule, and then one sum serves all
        counted = weights.sum(0)[None] if whole else self.known.astype(np.float64) @ weights
        sums = np.where(self.known, self.values, 0) @ weights
        return np.divide(sums, counted, out=np.full_like(sums, np.nan), where=counted > 0)


def _pooled(contest: Contest, curves: Floats, own: Bools, blocks: Iterable[Floats]) -> Floats:
    """(R,) numbers of the whole dataset from (N, points) curves of its ``own`` (N,) images.

    A number for each column of blocks of weights (N, R): how often an image counts.
    """
    assert contest.pool is not None
    # Of some hundred points an image, single precision is the faster by far, and fine enough.
    mine, found = curves[own].T.astype(np.float32, copy=False), []
    for weights in blocks:
        drawn = weights[own].astype(np.float32)
        counts = drawn.sum(0)
        numbers = np.full(len(counts), np.nan)
        there = counts > 0
        if there.any():
            numbers[there] = contest.pool(((mine @ drawn[:, there]) / counts[there]).T.astype(np.float64))
        found.append(numbers)
    return np.concatenate(found)


@dataclass(frozen=True)
class Standing:
    """Where the contenders of a contest stand.

    Attributes
    ----------
    mean, low, high
        (E,) number of the dataset with its 95 % percentile bootstrap interval over images (2,000 resamples,
        the same ones everywhere). Each on the images that the contender has. The interval of a number that is
        the best over thresholds is biased upwards, as that number itself is.
    rank
        (E,) 1 for the best, ties sharing theirs, on the ``common`` images, which all contenders have that
        have any; NaN where nothing is judged.
    common
        How many those are.
    best
        Index of the first of the best contenders; None where nothing is judged.
    difference, difference_low, difference_high
        (E,) paired difference to that one, on the images that both have, with its interval.
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
    """Contender ``one`` against ``other`` on the n images that both have.

    ``difference`` is the mean of one minus other, ``wins`` the share of images on which one is better, ties
    counted half, ``p_value`` of the two-sided Wilcoxon signed-rank test (1 where no image differs), and
    ``p_holm`` the same, corrected after Holm for all comparisons of the metric. A number of the whole dataset
    has a difference alone.
    """

    one: int
    other: int
    n: int
    difference: float
    wins: float
    p_value: float
    p_holm: float = np.nan


def standings(contests: Sequence[Contest], seed: int) -> list[Standing]:
    """Where the contenders of each contest stand."""
    found: list[Standing | None] = [_pooled_standing(c, seed) if c.pool else None for c in contests]
    plain = [contest for contest in contests if contest.pool is None]
    made = iter(_plain_standings(plain, seed))
    return [next(made) if standing is None else standing for standing in found]


def _plain_standings(contests: Sequence[Contest], seed: int) -> list[Standing]:
    """Of all at once: the draws are made once."""
    if not contests:
        return []
    N = contests[0].known.shape[1]
    whole = np.ones((N, 1))
    ahead = [_ahead(c, c.over(whole * _common(c)[:, None])[:, 0]) for c in contests]
    gaps = [
        None if first is None else _difference(c, first)
        for c, (_, first) in zip(contests, ahead, strict=True)
    ]
    numbers = [np.empty((len(c.known), RESAMPLES)) for c in contests]
    apart = [np.full((len(c.known), RESAMPLES), np.nan) for c in contests]
    start = 0
    for draws in _draws(N, seed):
        part = slice(start, start + draws.shape[1])
        start = part.stop
        for contest, gap, own, between in zip(contests, gaps, numbers, apart, strict=True):
            own[:, part] = contest.over(draws)
            if gap is not None:
                between[:, part] = gap.over(draws)
    return [
        Standing(
            contest.over(whole)[:, 0],
            *_interval(own),
            rank,
            int(_common(contest).sum()),
            first,
            np.full(len(own), np.nan) if gap is None else gap.over(whole)[:, 0],
            *_interval(between),
        )
        for contest, (rank, first), gap, own, between in zip(
            contests, ahead, gaps, numbers, apart, strict=True
        )
    ]


def _pooled_standing(contest: Contest, seed: int) -> Standing:
    """Contender by contender, each one's curves read once: they may be large."""
    assert contest.curves is not None
    E, N = contest.known.shape
    common = _common(contest)
    mean, shared, numbers = np.empty(E), np.empty(E), np.empty((E, RESAMPLES))
    for e, own in enumerate(contest.known):
        curves = contest.curves(e)
        mean[e] = _pooled(contest, curves, own, [np.ones((N, 1))])[0]
        shared[e] = _pooled(contest, curves, common & own, [np.ones((N, 1))])[0]
        # References do not depend on the explainer.
        same = contest.better is None and e and mean[e] == mean[e - 1]
        numbers[e] = numbers[e - 1] if same else _pooled(contest, curves, own, _draws(N, seed))
    rank, best = _ahead(contest, shared)
    difference, between = np.full(E, np.nan), np.full((E, 1), np.nan)
    if best is not None:
        difference, between = mean - mean[best], numbers - numbers[best]
        for e in range(E):
            if (contest.known[e] != contest.known[best]).any():
                difference[e] = _gap(contest, e, best, lambda: [np.ones((N, 1))])[0]
                between[e] = _gap(contest, e, best, lambda: _draws(N, seed))
    interval, around = _interval(numbers), _interval(between)
    return Standing(mean, *interval, rank, int(common.sum()), best, difference, *around)


def _gap(contest: Contest, one: int, other: int, blocks: Callable[[], Iterable[Floats]]) -> Floats:
    """(R,) numbers of one contender minus another's, on the images that both have."""
    assert contest.curves is not None
    both = contest.known[one] & contest.known[other]
    first = _pooled(contest, contest.curves(one), both, blocks())
    return first - _pooled(contest, contest.curves(other), both, blocks())


def _common(contest: Contest) -> Bools:
    """(N,) which images all contenders have that have any."""
    known = contest.known[contest.known.any(1)]
    return np.logical_and.reduce(known) & bool(len(known))


def _ahead(contest: Contest, mean: Floats) -> tuple[Floats, int | None]:
    """(E,) ranks by these means, and the first of the best."""
    if contest.better is None or np.isnan(mean).all():
        return np.full_like(mean, np.nan), None
    signed = -mean if contest.better == "higher" else mean
    ranks: Floats = rankdata(signed, nan_policy="omit")
    return ranks, int(np.nanargmin(signed))


def comparisons(contest: Contest, standing: Standing, wanted: Sequence[tuple[int, int]]) -> list[Comparison]:
    """Every contender against the best one, and the ``wanted`` pairs besides; Holm-corrected together."""
    best = standing.best
    if best is None:
        return []
    pairs = [(one, best) for one in range(len(contest.known)) if one != best]
    pairs += [(one, other) for one, other in wanted if best not in (one, other)]
    found = [_compared(contest, standing, one, other) for one, other in pairs]
    corrected = holm(np.array([each.p_value for each in found]))
    return [replace(each, p_holm=float(p)) for each, p in zip(found, corrected, strict=True)]


def holm(p_values: Floats) -> Floats:
    """(n,) p-values corrected for n comparisons after Holm (1979); NaN stands for no comparison.

    The k-th smallest of m is multiplied by m + 1 - k, and is at least what the ones before it became.
    """
    order = np.argsort(p_values)  # NaN last
    order = order[~np.isnan(p_values[order])]
    corrected = np.full_like(p_values, np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return corrected


def _compared(contest: Contest, standing: Standing, one: int, other: int) -> Comparison:
    known = contest.known[one] & contest.known[other]
    n = int(known.sum())
    if not n:
        return Comparison(one, other, 0, np.nan, np.nan, np.nan)
    if contest.pool is not None:
        alike = (contest.known[one] == contest.known[other]).all()
        gap = (
            standing.mean[one] - standing.mean[other]
            if alike
            else _gap(contest, one, other, lambda: [np.ones((len(known), 1))])[0]
        )
        return Comparison(one, other, n, float(gap), np.nan, np.nan)
    difference = contest.values[one, known] - contest.values[other, known]
    better = difference if contest.better == "higher" else -difference
    wins = float((better > 0).mean() + (better == 0).mean() / 2)
    p_value = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return Comparison(one, other, n, float(difference.mean()), wins, p_value)


def _difference(contest: Contest, best: int) -> Contest:
    """The contest of each contender's distance to the best one."""
    known = contest.known & contest.known[best]
    return Contest(contest.metric, None, known, contest.values - contest.values[best])


def _draws(images: int, seed: int) -> Iterator[Floats]:
    """(N, resamples) how often each image was drawn, block by block; the same whenever it is asked.

    As counts, so that all contenders share one matrix product instead of gathering values 2,000 times.
    """
    generator = np.random.default_rng(seed)
    size = max(1, min(RESAMPLES, _BLOCK // images))  # bounds the memory
    for start in range(0, RESAMPLES, size):
        draws = np.empty((min(size, RESAMPLES - start), images))
        for row in draws:
            row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
        yield draws.T


def _interval(numbers: Floats) -> tuple[Floats, Floats]:
    """(E,) ends of the percentile interval of (E, R) resampled numbers; NaN where all are undefined."""
    empty = np.asarray(np.isnan(numbers).all(1))
    low, high = np.nanpercentile(np.where(empty[:, None], 0, numbers), TAILS, axis=1)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def rows_of(
    contests: Sequence[Contest], contenders: Sequence[str], wanted: Sequence[tuple[int, int]], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What there is to say, as rows of two tables.

    Returns
    -------
    standings
        A row per metric and contender, with the fields of :class:`Standing`; ``p_value`` and ``p_holm``
        against the best one.
    comparisons
        A row per metric and pair, the best and everyone as well as the ``wanted`` ones, with the fields of
        :class:`Comparison`: contender ``explainer`` against ``against``, which may be the ``best``.
    """
    ahead, compared = [], []
    for contest, standing in zip(contests, standings(contests, seed), strict=True):
        pairs = comparisons(contest, standing, wanted)
        against_best = {pair.one: pair for pair in pairs if pair.other == standing.best}
        for e, contender in enumerate(contenders):
            fields = {key: float(v[e]) for key, v in vars(standing).items() if isinstance(v, np.ndarray)}
            own = against_best.get(e)
            tested = (own.p_value, own.p_holm) if own else (np.nan, np.nan)
            ahead.append(
                {"metric": contest.metric, "better": contest.better, "explainer": contender, **fields}
                | {"common": standing.common, "best": fields["rank"] == np.nanmin([np.inf, *standing.rank])}
                | {"p_value": tested[0], "p_holm": tested[1]}
            )
        for pair in pairs:
            names = {"explainer": contenders[pair.one], "against": contenders[pair.other]}
            numbers = {key: getattr(pair, key) for key in ("n", "difference", "wins", "p_value", "p_holm")}
            best = pair.other == standing.best
            compared.append({"metric": contest.metric, **names, "best": best, **numbers})
    return ahead, compared
