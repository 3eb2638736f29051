"""Merge the findings of one class that are about the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.findings.decision import Outcome, State
from tasks.findings.suspicion import Suspicion

_SHOWN = (State.FINDING, State.CANDIDATE)


def merged(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Merge findings, and candidates, of one class whose regions overlap; one planted cue makes several.

    The one whose transplants bring most stands for all of them, and names the others.

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
    kept: list[Outcome] = []
    for each in sorted((one for one in outcomes if one.state in _SHOWN), key=_brought):
        place = next((n for n, one in enumerate(kept) if _same(one, each)), None)
        if place is None:
            kept.append(each)
        else:
            kept[place] = replace(kept[place], merged=(*kept[place].merged, each.suspicion))
    return kept + [each for each in outcomes if each.state not in _SHOWN]


def _brought(outcome: Outcome) -> float:
    assert outcome.rise is not None
    return -outcome.rise.difference


def _same(one: Outcome, other: Outcome) -> bool:
    mine, its = one.suspicion, other.suspicion
    return mine.target == its.target and (_within(mine, its) or _within(its, mine))


def _within(one: Suspicion, other: Suspicion) -> bool:
    """Whether the regions of at least half of the exemplars of ``one`` touch the region of ``other``."""
    return float((one.regions & other.footprint).flatten(1).any(1).float().mean()) >= 0.5
