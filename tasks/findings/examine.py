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
from tasks.findings.decision import Outcome, State, paired_effect, unpaired_effect
from tasks.findings.interventions import (
    DONORS,
    FILLS,
    LEAST_EXEMPLARS,
    MATCHED,
    RECIPIENTS,
    remove,
    transplant,
)
from tasks.findings.places import fixed_place
from tasks.findings.regions import LEAST_PIXELS, area, without
from tasks.findings.seen import Seen
from tasks.findings.suspicion import LEAST_IMAGES, Suspicion
from tasks.findings.trials import Trials

PASSES = 4000  # a class
MOST = 8  # suspicions of a class that are tested


def suspicions_of(seen: Seen, target: int, size: tuple[int, int]) -> list[Suspicion]:
    """What is suspected of a class, the strongest first.

    Parameters
    ----------
    seen
        The maps.
    target
        The class.
    size
        (H, W) of the input.
    """
    found = [fixed_place(seen, target, size)]
    return sorted((each for each in found if each is not None), key=lambda each: -each.strength)


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
    return found


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
    if _cost(len(exemplars)) > passes:
        return Outcome(suspicion, State.NOT_TESTED, "the passes of the class are used up")
    rng = np.random.default_rng(seed_of(trials.seen.seed, "findings", suspicion.target, suspicion.view))
    removal = remove(trials, suspicion.target, exemplars, regions, rng)
    pasted = transplant(trials, suspicion.target, exemplars, regions, rng)
    if len(pasted.rows) < LEAST_EXEMPLARS:
        return Outcome(
            suspicion, State.ON_THE_OBJECT, f"it fits beside the object of {len(pasted.rows)} images only"
        )
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
        p_value=max(drop.p_value, rise.p_value),
    )


def _cost(exemplars: int) -> int:
    """Passes that a test takes at most."""
    return exemplars * (1 + FILLS + MATCHED) + RECIPIENTS * (1 + 2 * DONORS)
