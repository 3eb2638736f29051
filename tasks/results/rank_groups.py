"""Ranks of explainers over the metrics of a run: which differ, and which metrics rank alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import friedmanchisquare, kendalltau, studentized_range

from tasks.results.statistics import Floats

LEVEL = 0.05


@dataclass(frozen=True)
class Ranks:
    """The ranks of explainers in the ranked columns of a run.

    Attributes
    ----------
    explainers, columns
        Their names.
    ranks
        (columns, explainers), 1 for the best; NaN where an explainer has no score.
    """

    explainers: list[str]
    columns: list[str]
    ranks: Floats

    @classmethod
    def of(cls, summary: pa.Table) -> Ranks:
        """Take the ranks from ``summary.parquet``."""
        told = summary.select(["explainer", "metric", "better", "rank"]).to_pylist()
        rows = [row for row in told if row["better"]]
        explainers = list(dict.fromkeys(row["explainer"] for row in rows))
        columns = list(dict.fromkeys(row["metric"] for row in rows))
        ranks = np.full((len(columns), len(explainers)), np.nan)
        for row in rows:
            ranks[columns.index(row["metric"]), explainers.index(row["explainer"])] = row["rank"]
        return cls(explainers, columns, ranks)

    def complete(self) -> Ranks:
        """Leave out explainers without any rank, and then columns without a rank of all others."""
        there = np.flatnonzero((~np.isnan(self.ranks)).any(0))
        whole = np.flatnonzero((~np.isnan(self.ranks[:, there])).all(1))
        return Ranks(
            [self.explainers[i] for i in there],
            [self.columns[i] for i in whole],
            self.ranks[whole][:, there],
        )


@dataclass(frozen=True)
class RankGroups:
    """Which explainers differ in their mean ranks, after Friedman's test and Nemenyi's.

    Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006. There the blocks are
    data sets; here they are the columns of metrics, which are measured on the same images.

    Attributes
    ----------
    explainers
        Their names, that with the best mean rank first.
    mean
        (explainers,) the mean ranks.
    columns
        How many columns count.
    p_value
        Of Friedman's test that all explainers rank alike.
    difference
        The smallest difference of two mean ranks that Nemenyi's test tells from chance.
    groups
        The first and the last index of the largest groups in which no two explainers differ: all explainers,
        if Friedman's test tells no difference, else those whose mean ranks are within ``difference``.
    """

    explainers: list[str]
    mean: Floats
    columns: int
    p_value: float
    difference: float
    groups: list[tuple[int, int]]


def rank_groups(ranks: Ranks) -> RankGroups | None:
    """Compare the mean ranks of complete ranks; None with fewer than 3 explainers or 2 columns."""
    columns, k = ranks.ranks.shape
    if k < 3 or columns < 2:
        return None
    order = np.argsort(ranks.ranks.mean(0), kind="stable")
    sorted_ranks = ranks.ranks[:, order]
    mean: Floats = sorted_ranks.mean(0)
    level = (sorted_ranks == sorted_ranks[:, :1]).all()  # SciPy's test is undefined if all ranks are tied
    p_value = 1.0 if level else float(friedmanchisquare(*sorted_ranks.T).pvalue)
    difference = float(
        studentized_range.ppf(1 - LEVEL, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * columns))
    )
    reach = np.inf if p_value >= LEVEL else difference
    groups: list[tuple[int, int]] = []
    for first in range(k):
        last = int(np.flatnonzero(mean - mean[first] <= reach)[-1])
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return RankGroups([ranks.explainers[i] for i in order], mean, columns, p_value, difference, groups)


def rank_agreement(ranks: Ranks) -> Floats:
    """Compute Kendall's tau-b between the ranks in every two columns, (columns, columns).

    It is taken over the explainers that both columns rank, and NaN where these are fewer than 3 or all tied.
    """
    many = len(ranks.columns)
    found: Floats = np.full((many, many), np.nan)
    for one in range(many):
        for other in range(one, many):
            a, b = ranks.ranks[one], ranks.ranks[other]
            both = ~np.isnan(a) & ~np.isnan(b)
            if both.sum() >= 3 and len(set(a[both])) > 1 and len(set(b[both])) > 1:
                found[one, other] = found[other, one] = kendalltau(a[both], b[both]).statistic
    return found
