"""Chooses the samples of the gallery, each with the reason: a few at random, and those worth looking at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from explainers.statuses import STATUSES, Status
from storage.characters import shown
from storage.maps import read
from storage.records import Step
from storage.run import Run
from storage.samples import read_columns_of_shard
from storage.scores import read_score
from tasks.results.accuracy import are_right
from tasks.results.headline import headline, ranked
from tasks.results.leaderboard import is_control

MOST = 48  # samples
AT_RANDOM, DISAGREED, DEGENERATE, FAILED, WRONG = 8, 6, 6, 6, 8  # samples for each of these reasons, at most
EXTREMES, EACH = 16, 4  # the best and worst samples of all explainers together; of one explainer, at most
KINDS = {
    "random": "chosen at random",
    "disagreed": "explainers disagree",
    "wrong": "wrong prediction",
    "degenerate": "degenerate maps",
    "failed": "failed",
    "best": "an explainer's best",
    "worst": "an explainer's worst",
}
_FLAT = [STATUSES.index(Status.ALL_ZERO), STATUSES.index(Status.CONSTANT)]
_BROKEN = [STATUSES.index(Status.FAILED), STATUSES.index(Status.NOT_FINITE)]


@dataclass(frozen=True)
class Reason:
    """Why a sample is in the gallery: one of :data:`KINDS`, and the whole reason in words."""

    kind: str
    text: str


@dataclass(frozen=True, eq=False)
class Facts:
    """What the choice looks at, for each of N samples.

    Attributes
    ----------
    rows
        (N,) ascending, the samples by their index in the run.
    wrong
        (N,) the confidence of a prediction that is not the label; NaN where it is right or no label is known.
    failed, degenerate
        (N,) the number of maps that failed or are not finite, or all maps of an unreadable input; the number
        of maps that are all zero or constant. Controls do not count.
    column, better
        The column of the scores, and "higher" or "lower"; both empty if the run ranks no column.
    scores
        (N,) by explainer, the mean score over the targets of a sample, NaN where there is none. Controls are
        left out, unless there is nothing else.
    """

    rows: NDArray[np.int64]
    wrong: NDArray[np.float64]
    failed: NDArray[np.int64]
    degenerate: NDArray[np.int64]
    column: str
    better: str
    scores: Mapping[str, NDArray[np.float64]]


def headline_of(run: Run) -> str:
    """The first headline column that has a number per image, or the first of all; empty if there is none."""
    columns = [*headline(run.manifest), *ranked(run.manifest)]
    return next((name for name in columns if not run.columns[name].pooled), "")


def judged(run: Run) -> list[str]:
    """The explainers without the controls, which show nothing about the model; all if there are no others."""
    own = [name for name, entry in run.explainers.items() if not is_control(name, entry)]
    return own or list(run.explainers)


def facts_of(run: Run) -> Facts:
    """What the choice looks at, of all samples that have passed the model; few shards are in memory."""
    done, k = run.finished(), run.targets_per_image
    shards = [s for s in range(run.shards) if {Step("inputs", s), Step("activations", s)} <= done]
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(*run.bounds(shard)) for shard in shards)])
    unusable, wrong = [np.empty(0, bool)], [np.empty(0)]
    for shard in shards:
        table = read_columns_of_shard(
            run.root, shard, ["label", "labels", "prediction", "confidence", "status"]
        )
        unusable.append(pc.not_equal(table["status"], "ok").to_numpy(zero_copy_only=False))
        wrong.append(_wrong(table))
    names = judged(run)
    failed = np.where(np.concatenate(unusable), k * len(names), 0)
    degenerate = np.zeros(len(rows), np.int64)
    for name in names:
        statuses = statuses_of(run, name, done).reshape(-1, k)[rows]
        failed += np.where(np.concatenate(unusable), 0, np.isin(statuses, _BROKEN).sum(1))
        degenerate += np.isin(statuses, _FLAT).sum(1)
    column = headline_of(run)
    scores = {name: _mean(read_score(run, name, column).reshape(-1, k)[rows]) for name in names if column}
    better = (run.columns[column].better if column else None) or ""
    return Facts(rows, np.concatenate(wrong), failed, degenerate, column, better, scores)


def statuses_of(run: Run, explainer: str, done: set[Step]) -> NDArray[np.int8]:
    """(maps,) the stored statuses of an explainer, -1 in shards that are not explained."""
    found = np.full(run.rows * run.targets_per_image, -1, np.int8)
    shards = np.array([s for s in range(run.shards) if Step("saliency", s, explainer) in done], np.int64)
    for part in np.split(shards, np.flatnonzero(np.diff(shards) != 1) + 1):  # neighbours are read together
        if len(part):
            start, stop = run.rows_of(int(part[0]))[0], run.rows_of(int(part[-1]))[1]
            found[start:stop] = read(run.saliency(explainer) / "status", start, stop)
    return found


def choose(facts: Facts, seed: int, most: int = MOST) -> dict[int, list[Reason]]:
    """Choose samples by several reasons in turn, best candidates first, until there are ``most``.

    Returns
    -------
    dict
        The reasons of each sample by its index in the run, in the order of the reasons. That a sample is
        wrong, failed or has degenerate maps is a reason of every chosen sample for which it is true.
    """
    wanted = list(_candidates(facts, seed))
    chosen: dict[int, list[tuple[int, Reason]]] = {}
    for turn in range(max((len(places) for _, places in wanted), default=0)):
        for order, (reason, places) in enumerate(wanted):
            place = int(places[turn]) if turn < len(places) else -1
            if place >= 0 and (place in chosen or len(chosen) < most):
                chosen.setdefault(place, []).append((order, reason))
    found: dict[int, list[Reason]] = {}
    for place, each in sorted(chosen.items(), key=lambda item: (min(o for o, _ in item[1]), item[0])):
        reasons = [reason for _, reason in sorted(each, key=lambda pair: pair[0])]
        reasons += [reason for reason in _true_of(facts, place) if reason not in reasons]
        found[int(facts.rows[place])] = reasons
    return found


def _candidates(facts: Facts, seed: int) -> Iterator[tuple[Reason, NDArray[np.int64]]]:
    """Each reason with its candidates, as places in the facts, the best ones first."""
    yield (
        Reason("random", KINDS["random"]),
        np.random.default_rng(seed).permutation(len(facts.rows))[:AT_RANDOM],
    )
    spread = _spread(facts.scores, len(facts.rows))
    told = f"explainers differ most in {facts.column}"
    yield Reason("disagreed", told), _ordered(np.where(spread > 0, spread, np.nan), True)[:DISAGREED]
    yield Reason("wrong", KINDS["wrong"]), _ordered(facts.wrong, True)[:WRONG]
    for kind, counts, number in (
        ("degenerate", facts.degenerate, DEGENERATE),
        ("failed", facts.failed, FAILED),
    ):
        yield Reason(kind, KINDS[kind]), _ordered(np.where(counts > 0, counts, np.nan), True)[:number]
    each = min(EACH, max(1, EXTREMES // (2 * max(1, len(facts.scores)))))
    for kind in ("best", "worst"):
        for name, values in facts.scores.items():
            order = _ordered(values, facts.better == "higher")[:: 1 if kind == "best" else -1]
            # No sample is both, however many have the same score.
            apart = values[order] != values[order[-1:]]
            told = f"{kind} of {shown(name)} in {facts.column}"
            yield Reason(kind, told), order[apart][: min(each, len(order) // 2)]


def _true_of(facts: Facts, place: int) -> Iterator[Reason]:
    """The reasons that are facts about a sample, whatever it was chosen for."""
    there = {
        "wrong": not np.isnan(facts.wrong[place]),
        "degenerate": facts.degenerate[place] > 0,
        "failed": facts.failed[place] > 0,
    }
    yield from (Reason(kind, KINDS[kind]) for kind, is_true in there.items() if is_true)


def _ordered(values: NDArray[np.floating], descending: bool) -> NDArray[np.int64]:
    """The places of all values but NaN, in order; equal values stay in the order of the run."""
    places = np.flatnonzero(~np.isnan(values))
    own = values[places]
    return places[np.argsort(-own if descending else own, kind="stable")]


def _spread(scores: Mapping[str, NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    """(N,) the largest score of an explainer minus the smallest; NaN with fewer than two scores."""
    if len(scores) < 2:
        return np.full(count, np.nan)
    each = np.stack(list(scores.values()))
    highest = np.where(np.isnan(each), -np.inf, each).max(0)
    lowest = np.where(np.isnan(each), np.inf, each).min(0)
    return np.where((~np.isnan(each)).sum(0) > 1, highest - lowest, np.nan)


def _mean(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the mean over the targets (N, k) that have a score; NaN without any."""
    there = np.isfinite(each)
    count = there.sum(1)
    return np.where(count > 0, np.where(there, each, 0).sum(1) / count.clip(min=1), np.nan)


def _wrong(table: pa.Table) -> NDArray[np.float64]:
    """(N,) the confidence of a prediction that is none of the labels; else NaN."""
    missed = np.array([right is False for right in are_right(table)], bool)
    return np.where(missed, table["confidence"].to_numpy().astype(np.float64), np.nan)
