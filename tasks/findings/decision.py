"""What becomes of a suspicion after its test: a finding, or one of the reasons why it is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from scipy.stats import mannwhitneyu, wilcoxon
from torch import Tensor

from tasks.findings.interventions import Floats, Removal, Transplant
from tasks.findings.natural import FEWEST, Natural
from tasks.findings.suspicion import Suspicion
from tasks.results.statistics import half_width, holm

LEVEL = 0.05  # of the p-value after Holm's correction
DROP, RISE = 0.5, 1.0  # nats: the least effects of removal and of transplants
FLIPS = 0.10  # by how much the share of flipped predictions must exceed its control
# Without boxes and masks, by how much it must exceed that of other classes' content to their own class, and
# the share of the images that still get the class after removal.
BEYOND_NATURAL, KEPT = 0.25, 0.25


class State(StrEnum):
    """What became of a suspicion."""

    FINDING = "finding"
    CANDIDATE = "candidate"  # the most that can be said without boxes and masks
    UNDECIDABLE = "undecidable"
    NOT_CONFIRMED = "not confirmed"
    ON_THE_OBJECT = "on the object"  # too little is left beside the objects to be tested
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Effect:
    """An effect in nats, or a share: its mean, that of its control, and their difference with an interval.

    Attributes
    ----------
    mean, control
        The means over the images.
    difference, low, high
        Mean minus control, with its 95 % interval (Student's t over the images; NaN with a single one).
    p_value
        That the difference is not above zero: Wilcoxon's signed-rank test, one-sided, or Mann and Whitney's
        where the control is of other images.
    """

    mean: float
    control: float
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """A suspicion with all that was measured about it.

    Attributes
    ----------
    suspicion
        What was suspected.
    state, reason
        What became of it, and why, in a few words.
    drop
        What its exemplars lose by removal, in nats; None if it was not tested. So is everything below.
    rise
        What images of other classes gain by transplants, in nats.
    flips
        Share of the transplants after which the class is predicted, in [0, 1].
    removal, transplant
        The measurements, image by image.
    natural
        Without boxes and masks: what content of other classes does at the place.
    p_value, p_holm
        The larger of the two p-values of ``drop`` and ``rise``, before and after Holm's correction for all
        tested suspicions of the run; ``p_holm`` is NaN before :func:`decided`.
    refined
        (H, W) bool: the part of the region that has the effect; None where it was not looked for.
    merged
        Other suspicions of this class that are the same finding.
    passes
        Passes through the network.
    """

    suspicion: Suspicion
    state: State
    reason: str = ""
    drop: Effect | None = None
    rise: Effect | None = None
    flips: Effect | None = None
    removal: Removal | None = None
    transplant: Transplant | None = None
    natural: Natural | None = None
    p_value: float = np.nan
    p_holm: float = np.nan
    refined: Tensor | None = None
    merged: tuple[Suspicion, ...] = ()
    passes: int = 0


def paired_effect(values: Floats, controls: Floats) -> Effect:
    """The effect of n images (n,), 1 or more, that are their own controls (n,)."""
    difference = values - controls
    mean = float(difference.mean())
    half = float(half_width(len(difference), difference.var() * len(difference)))
    # SciPy's test is undefined if all differences are zero.
    p_value = float(wilcoxon(difference, alternative="greater").pvalue) if difference.any() else 1.0
    return Effect(float(values.mean()), float(controls.mean()), mean, mean - half, mean + half, p_value)


def unpaired_effect(values: Floats, controls: Floats) -> Effect:
    """The effect of n images (n,) against controls (m,) that are other images, both 2 or more."""
    mean = float(values.mean() - controls.mean())
    one, other = (float(half_width(len(x), x.var() * len(x))) for x in (values, controls))
    half = math.hypot(one, other)  # the two means are independent
    p_value = float(mannwhitneyu(values, controls, alternative="greater").pvalue)
    return Effect(float(values.mean()), float(controls.mean()), mean, mean - half, mean + half, p_value)


def decided(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Decide about all tested suspicions of a run.

    A finding has p < .05 after Holm's correction over the run, a removal that costs at least 0.5 nats, a
    transplant that brings at least 1 nat, and at least 10 % more flipped predictions than content of random
    images. P-values alone accused honest classes.

    Without boxes and masks the object cannot be taken out, so that there is at most a candidate. It passes
    the same rule; content of other classes that is as salient turns at least 25 % fewer predictions to its
    own class; and after the removal at least 25 % of the images still get the class,
    so that the object is a second evidence. A network that relies on the cue alone cannot be found this way,
    nor can a cue in all images of a class.

    Parameters
    ----------
    outcomes
        Those of all classes; those without measurements stay as they are.

    Returns
    -------
    list of Outcome
        In the order given.
    """
    corrected = holm(np.array([each.p_value for each in outcomes], dtype=np.float64))
    return [
        each if each.drop is None else replace(_decided(each, float(p)), p_holm=float(p))
        for each, p in zip(outcomes, corrected, strict=True)
    ]


def promising(outcome: Outcome) -> bool:
    """Whether a measured suspicion would pass the rule if it were the only one of the run."""
    return outcome.drop is not None and not _lacking(outcome, outcome.p_value)


def _decided(outcome: Outcome, p_holm: float) -> Outcome:
    reason = _lacking(outcome, p_holm)
    if reason or outcome.natural is None:
        return replace(outcome, state=State.NOT_CONFIRMED if reason else State.FINDING, reason=reason)
    assert outcome.removal is not None
    assert outcome.flips is not None
    if math.isnan(outcome.natural.flips):
        reason = (
            f"{outcome.natural.donors} images of other classes are as salient, fewer than {FEWEST}"
            if outcome.natural.donors < FEWEST
            else "it takes three classes, or boxes"
        )
        return replace(outcome, state=State.UNDECIDABLE, reason=reason)
    if outcome.flips.mean - outcome.natural.flips < BEYOND_NATURAL:
        reason = f"content of other classes turns {outcome.natural.flips:.0%} to its own class"
    elif outcome.removal.kept < KEPT:
        reason = f"after removal {outcome.removal.kept:.0%} still get the class, less than {KEPT:.0%}"
    return replace(outcome, state=State.NOT_CONFIRMED if reason else State.CANDIDATE, reason=reason)


def _lacking(outcome: Outcome, p_holm: float) -> str:
    """What a tested suspicion lacks to be a finding; empty if nothing."""
    assert outcome.drop is not None
    assert outcome.rise is not None
    assert outcome.flips is not None
    if outcome.rise.difference < RISE:
        return f"transplants bring {outcome.rise.difference:.2f} nats, less than {RISE:g}"
    if outcome.drop.difference < DROP:
        return f"removal costs {outcome.drop.difference:.2f} nats, less than {DROP:g}"
    if outcome.flips.difference < FLIPS:
        return (
            f"transplants turn {outcome.flips.difference:.0%} more than their control, less than {FLIPS:.0%}"
        )
    return "" if p_holm < LEVEL else f"p is {p_holm:.2g} after Holm's correction"
