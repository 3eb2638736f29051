"""The search for findings in one class: what is suspected, and the test of it by intervention.

The classes of a run are independent of each other up to :func:`tasks.findings.decision.decided`, which
corrects for all tests of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from explainers.models.black_box import BlackBox
from explainers.numerics.randomness import seed_of
from tasks.findings.decision import Outcome, State, paired_effect, promising, unpaired_effect
from tasks.findings.interventions import (
    DONORS,
    FILLS,
    LEAST_EXEMPLARS,
    MATCHED,
    RECIPIENTS,
    remove,
    transplant,
)
from tasks.findings.natural import natural
from tasks.findings.off_object import off_object
from tasks.findings.places import fixed_place
from tasks.findings.refine import refined
from tasks.findings.regions import LEAST_PIXELS, area, without
from tasks.findings.seen import Rows, Seen
from tasks.findings.suspicion import LEAST_IMAGES, Suspicion
from tasks.findings.trials import Trials

PASSES = 4000  # a class
MOST = 8  # suspicions of a class that are tested


def suspicions_of(
    seen: Seen, target: int, size: tuple[int, int], off: tuple[Rows, float] | None = None
) -> list[Suspicion]:
    """What is suspected of a class, the strongest first.

    Parameters
    ----------
    seen
        The maps.
    target
        The class.
    size
        (H, W) of the input.
    off
        What :func:`tasks.findings.off_object.suspected_classes` returned for the class, if anything.
    """
    place = fixed_place(seen, target, size)
    found = [] if place is None else [place]
    found += [] if off is None else off_object(seen, target, *off, size)
    return sorted(found, key=lambda each: -each.strength)


def examine_class(
    classifier: BlackBox,
    seen: Seen,
    suspicions: Sequence[Suspicion],
    passes: int = PASSES,
    forwards: int = 64,
) -> list[Outcome]:
    """Test the suspicions of a class by intervention.

    The state of those that were measured is "not confirmed" until :func:`tasks.findings.decision.decided`
    has seen those of all classes.

    Parameters
    ----------
    classifier
        The network. A class is "predicted" as it says.
    seen
        The maps and the images.
    suspicions
        Those of one class, from :func:`suspicions_of` and from other views. The strongest 8 are tested.
    passes
        Passes through the network that the class may take. A suspicion that would need more than are left is
        not tested.
    forwards
        Images per pass; it changes no result.

    Returns
    -------
    list of Outcome
        One per suspicion, the strongest first.
    """
    trials = Trials(classifier, seen, forwards)
    found: list[Outcome] = []
    for number, each in enumerate(sorted(suspicions, key=lambda one: -one.strength)):
        before = trials.passes
        reason = _untestable(trials, each) or (
            "" if number < MOST else f"the class has {MOST} stronger suspicions"
        )
        if reason:
            found.append(Outcome(each, State.NOT_TESTED, reason))
            continue
        outcome = _tested(trials, each, passes - trials.passes)
        found.append(replace(outcome, passes=trials.passes - before))
    # A refined place may take all that is left, and comes after the tests.
    return [_refined(trials, each, passes) if promising(each) else each for each in found]


def _refined(trials: Trials, outcome: Outcome, passes: int) -> Outcome:
    """The same outcome with its refined place, if it has one region and there are passes left."""
    suspicion, before = outcome.suspicion, trials.passes
    assert outcome.removal is not None
    if suspicion.region.ndim == 3:
        return outcome
    rng = _generator(trials.seen, suspicion, "refined")
    place = refined(trials, suspicion.target, outcome.removal.rows, suspicion.region, passes - before, rng)
    return replace(outcome, refined=place, passes=outcome.passes + trials.passes - before)


def _generator(seen: Seen, suspicion: Suspicion, purpose: str) -> np.random.Generator:
    """Random numbers that follow from the seed, the class and the view alone."""
    return np.random.default_rng(seed_of(seen.seed, purpose, suspicion.target, suspicion.view))


def _untestable(trials: Trials, suspicion: Suspicion) -> str:
    """Why a suspicion cannot be tested; empty if it can."""
    others = len(trials.seen.others(suspicion.target))
    if suspicion.images < LEAST_IMAGES:
        return f"it is about {suspicion.images} images, fewer than {LEAST_IMAGES}"
    if others < LEAST_IMAGES:
        return f"there are {others} images of other classes, fewer than {LEAST_IMAGES}"
    if bool(suspicion.regions.flatten(1).all()):
        return "its region is the whole image"
    return "" if bool(suspicion.region.any()) else "its region is empty"


def _tested(trials: Trials, suspicion: Suspicion, passes: int) -> Outcome:
    objects = trials.seen.grown_objects(suspicion.exemplars)
    regions = without(suspicion.regions, objects)
    fit = (area(regions) >= LEAST_PIXELS).numpy()
    exemplars, regions = suspicion.exemplars[fit], regions[fit]
    if len(exemplars) < LEAST_EXEMPLARS:
        state = State.NOT_TESTED if objects is None else State.ON_THE_OBJECT
        return Outcome(suspicion, state, f"{len(exemplars)} images have {LEAST_PIXELS} pixels of it left")
    if _cost(len(exemplars), objects is not None) > passes:
        return Outcome(suspicion, State.NOT_TESTED, "the passes of the class are used up")
    rng = _generator(trials.seen, suspicion, "findings")
    removal = remove(trials, suspicion.target, exemplars, regions, rng)
    if len(removal.controls) < LEAST_EXEMPLARS:
        reason = f"it fits beside the object of {len(removal.controls)} images of other classes only"
        return Outcome(suspicion, State.ON_THE_OBJECT, reason)
    pasted = transplant(trials, suspicion.target, exemplars, regions, rng)
    if len(pasted.rows) < LEAST_EXEMPLARS:
        return Outcome(
            suspicion, State.ON_THE_OBJECT, f"it fits beside the object of {len(pasted.rows)} images only"
        )
    own = natural(trials, suspicion.target, exemplars, regions, rng) if objects is None else None
    drop = (paired_effect if removal.paired else unpaired_effect)(removal.drops, removal.controls)
    rise = paired_effect(pasted.rises, pasted.controls)
    return Outcome(
        suspicion,
        State.NOT_CONFIRMED,
        drop=drop,
        rise=rise,
        flips=paired_effect(pasted.flips, pasted.control_flips),
        removal=removal,
        transplant=pasted,
        natural=own,
        p_value=max(drop.p_value, rise.p_value),
    )


def _cost(exemplars: int, objects: bool) -> int:
    """Passes that a test takes at most."""
    donors = 2 if objects else 3  # the third is that of natural content
    return exemplars * (1 + FILLS + MATCHED) + RECIPIENTS * (1 + donors * DONORS)
