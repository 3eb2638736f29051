"""Merge the findings of one class that are about the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.findings.decision import Outcome, State
from tasks.findings.suspicion import Suspicion

_SHOWN = (State.FINDING, State.CANDIDATE)
_NEARLY = 0.8  # of what the best of a group brings


def merged(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Merge findings, and candidates, of one class whose regions overlap; one planted cue makes several.

    The one whose transplants bring most stands for all of them, and names the others. A region that all
    images share tells more than one of each image's own, and is preferred if it brings at least 80 % as much.

    Parameters
    ----------
    outcomes
        Those of all classes, decided.

    Returns
    -------
    list of Outcome
        Findings and candidates first, by what their transplants bring; then all that was not confirmed, in
        the order given.
    """
    groups: list[list[Outcome]] = []
    for each in sorted((one for one in outcomes if one.state in _SHOWN), key=lambda one: -_brought(one)):
        group = next((group for group in groups if _same(group[0], each)), None)
        if group is None:
            groups.append([each])
        else:
            group.append(each)
    kept = sorted((_one(group) for group in groups), key=lambda one: -_brought(one))
    return kept + [each for each in outcomes if each.state not in _SHOWN]


def _one(group: list[Outcome]) -> Outcome:
    """The outcome that stands for a group, which begins with the one that brings most."""
    shared = (each for each in group if each.suspicion.region.ndim == 2)
    chosen = next((each for each in shared if _brought(each) >= _NEARLY * _brought(group[0])), group[0])
    others = tuple(each.suspicion for each in group if each is not chosen)
    return replace(chosen, merged=others) if others else chosen


def _brought(outcome: Outcome) -> float:
    assert outcome.rise is not None
    return outcome.rise.difference


def _same(one: Outcome, other: Outcome) -> bool:
    mine, its = one.suspicion, other.suspicion
    return mine.target == its.target and (_within(mine, its) or _within(its, mine))


def _within(one: Suspicion, other: Suspicion) -> bool:
    """Whether the regions of at least half of the exemplars of ``one`` touch the region of ``other``."""
    return float((one.regions & other.footprint).flatten(1).any(1).float().mean()) >= 0.5
