"""From one number a sample to what can be said of a dataset: means, intervals, ranks, paired comparisons.

Everything is paired: the contenders, explainers of one run or of several, are scored on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

Floats = NDArray[np.float64]

RESAMPLES = 2000
TAILS = (2.5, 97.5)
_BLOCK = 4_000_000  # numbers of draws in memory at a time


@dataclass(frozen=True)
class Contest:
    """One number of every contender on the same N samples.

    Attributes
    ----------
    metric, better
        Its name, and "higher", "lower" or None: see :class:`tasks.metrics.base.Column`.
    values
        (E, N), NaN where the number is undefined.
    curves, pool
        Of a number that belongs to the whole dataset: (N, points) a contender, rows of NaN where there is no
        curve, and what makes (R,) numbers from (R, points) mean curves. There are no ``values`` then.
    """

    metric: str
    better: str | None
    values: Floats
    curves: Sequence[Floats] = ()
    pool: Callable[[Floats], Floats] | None = None

    @property
    def known(self) -> NDArray[np.bool_]:
        """(E, N): which samples have the number, or a curve."""
        if self.pool is None:
            return ~np.isnan(self.values)
        return np.stack([~np.isnan(curve[:, 0]) for curve in self.curves])

    def over(self, weights: Floats) -> Floats:
        """(E, R) numbers of the dataset with each sample counted as often as ``weights`` (N, R) says."""
        known = self.known
        counted = known.astype(np.float64) @ weights if not known.all() else weights.sum(0)[None]
        if self.pool is None:
            sums = np.where(known, self.values, 0) @ weights
            return np.divide(sums, counted, out=np.full_like(sums, np.nan), where=counted > 0)
        counted = np.broadcast_to(counted, (len(known), weights.shape[1]))
        found = np.full_like(counted, np.nan)
        for own, curve, times in zip(found, self.curves, counted, strict=True):
            drawn = times > 0
            sums = np.nan_to_num(curve.T) @ weights[:, drawn]
            own[drawn] = self.pool((sums / times[drawn]).T)
        return found


@dataclass(frozen=True)
class Standing:
    """Where the contenders of a contest stand.

    Attributes
    ----------
    mean, low, high
        (E,) number of the dataset with its 95 % percentile bootstrap interval over samples (2,000 resamples,
        the same ones everywhere).
    rank
        (E,) 1 for the best mean, ties sharing theirs; NaN where nothing is judged.
    best
        Index of the contender with the best mean; None where nothing is judged.
    difference, difference_low, difference_high
        (E,) paired difference to the best one, on the samples that both have, with its interval.
    """

    mean: Floats
    low: Floats
    high: Floats
    rank: Floats
    best: int | None
    difference: Floats
    difference_low: Floats
    difference_high: Floats


@dataclass(frozen=True)
class Comparison:
    """Contender ``one`` against ``other`` on the samples that both have.

    ``difference`` is the mean of one minus other, ``wins`` the share of samples on which one is better, ties
    counted half, ``p_value`` of the two-sided Wilcoxon signed-rank test (1 where no sample differs), and
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
    if not contests:
        return []
    N = contests[0].known.shape[1]
    whole = np.ones((N, 1))
    means = [contest.over(whole)[:, 0] for contest in contests]
    bests = [_best(mean, contest.better) for mean, contest in zip(means, contests, strict=True)]
    gaps = [
        contest if best is None else _difference(contest, best)
        for contest, best in zip(contests, bests, strict=True)
    ]
    both = [contest.known.shape[0] for contest in contests]
    resampled = [np.empty((E, RESAMPLES)) for E in both]
    differences = [np.full((E, RESAMPLES), np.nan) for E in both]
    for part, draws in _draws(N, seed):
        for contest, best, gap, numbers, apart in zip(
            contests, bests, gaps, resampled, differences, strict=True
        ):
            numbers[:, part] = contest.over(draws)
            if best is not None:
                apart[:, part] = (
                    gap.over(draws) if gap.pool is None else numbers[:, part] - numbers[best, part]
                )
    found = []
    for contest, mean, best, gap, numbers, apart in zip(
        contests, means, bests, gaps, resampled, differences, strict=True
    ):
        difference = np.full_like(mean, np.nan)
        if best is not None:
            difference = gap.over(whole)[:, 0] if gap.pool is None else mean - mean[best]
        interval, between = _interval(numbers), _interval(apart)
        rank = _ranks(mean, contest.better)
        found.append(Standing(mean, *interval, rank, best, difference, *between))
    return found


def comparisons(contest: Contest, best: int, wanted: Sequence[tuple[int, int]]) -> list[Comparison]:
    """Every contender against the best one, and the ``wanted`` pairs besides; Holm-corrected together."""
    pairs = [(one, best) for one in range(len(contest.known)) if one != best]
    pairs += [(one, other) for one, other in wanted if best not in (one, other)]
    found = [_compared(contest, one, other) for one, other in pairs]
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


def _compared(contest: Contest, one: int, other: int) -> Comparison:
    known = contest.known[[one, other]].all(0)
    n = int(known.sum())
    if contest.pool is not None:
        first, second = contest.over(np.ones((known.size, 1)))[[one, other], 0]
        return Comparison(one, other, n, float(first - second), np.nan, np.nan)
    if not n:
        return Comparison(one, other, 0, np.nan, np.nan, np.nan)
    difference = contest.values[one, known] - contest.values[other, known]
    better = difference if contest.better == "higher" else -difference
    wins = float((better > 0).mean() + (better == 0).mean() / 2)
    p_value = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return Comparison(one, other, n, float(difference.mean()), wins, p_value)


def _difference(contest: Contest, best: int) -> Contest:
    """The contest of each contender's distance to the best one."""
    if contest.pool is not None:
        return contest
    return Contest(contest.metric, None, contest.values - contest.values[best])


def _draws(samples: int, seed: int) -> Iterator[tuple[slice, Floats]]:
    """Which resamples, and (N, resamples) how often each sample was drawn.

    As counts, so that all contenders share one matrix product instead of gathering values 2,000 times.
    """
    generator = np.random.default_rng(seed)
    size = max(1, min(RESAMPLES, _BLOCK // samples))  # bounds the memory
    for start in range(0, RESAMPLES, size):
        draws = np.empty((min(size, RESAMPLES - start), samples))
        for row in draws:
            row[:] = np.bincount(generator.integers(samples, size=samples), minlength=samples)
        yield slice(start, start + len(draws)), draws.T


def _interval(numbers: Floats) -> tuple[Floats, Floats]:
    """(E,) ends of the percentile interval of (E, R) resampled numbers; NaN where all are undefined."""
    empty = np.asarray(np.isnan(numbers).all(1))
    low, high = np.nanpercentile(np.where(empty[:, None], 0, numbers), TAILS, axis=1)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def _best(mean: Floats, better: str | None) -> int | None:
    if better is None or np.isnan(mean).all():
        return None
    return int(np.nanargmax(mean) if better == "higher" else np.nanargmin(mean))


def _ranks(mean: Floats, better: str | None) -> Floats:
    if better is None:
        return np.full_like(mean, np.nan)
    ranks: Floats = rankdata(-mean if better == "higher" else mean, nan_policy="omit")
    return ranks


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
        pairs = [] if standing.best is None else comparisons(contest, standing.best, wanted)
        against_best = {pair.one: pair for pair in pairs if pair.other == standing.best}
        for e, contender in enumerate(contenders):
            fields = {key: float(v[e]) for key, v in vars(standing).items() if key != "best"}
            own = against_best.get(e)
            tested = (own.p_value, own.p_holm) if own else (np.nan, np.nan)
            ahead.append(
                {"metric": contest.metric, "better": contest.better, "explainer": contender, **fields}
                | {"best": e == standing.best, "p_value": tested[0], "p_holm": tested[1]}
            )
        for pair in pairs:
            names = {"explainer": contenders[pair.one], "against": contenders[pair.other]}
            numbers = {key: getattr(pair, key) for key in ("n", "difference", "wins", "p_value", "p_holm")}
            best = pair.other == standing.best
            compared.append({"metric": contest.metric, **names, "best": best, **numbers})
    return ahead, compared
