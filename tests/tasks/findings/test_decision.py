"""The decision: p-values by hand and by simulation, intervals that cover, each threshold, merging."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rule_toys import PATCH, seen, suspicion
from tasks.findings.decision import Effect, Outcome, State, decided, paired_effect, promising, unpaired_effect
from tasks.findings.interventions import Removal
from tasks.findings.merge import merged
from tasks.findings.natural import Natural

NONE = np.empty(0)


def outcome(rise=4.0, drop=2.0, flips=0.5, p=1e-6, kept=1.0, natural=None, region=PATCH, target=0) -> Outcome:
    """A measured suspicion with the given differences to the controls."""
    one = suspicion(seen(), region, target)
    effects = {
        name: Effect(value, 0, value, value, value, p)
        for name, value in (("drop", drop), ("rise", rise), ("flips", flips))
    }
    removal = Removal(one.exemplars, NONE, NONE, True, kept)
    return Outcome(one, State.NOT_CONFIRMED, removal=removal, natural=natural, p_value=p, **effects)


def test_p_of_paired_effects_is_that_of_the_signs_where_all_agree() -> None:
    """With n differences that are all positive and distinct, 1 of the 2^n signs is as extreme."""
    found = paired_effect(np.arange(1.0, 11), np.zeros(10))
    assert found.p_value == pytest.approx(2.0**-10)
    assert (found.mean, found.control, found.difference) == (5.5, 0, 5.5)
    assert paired_effect(np.zeros(10), np.zeros(10)).p_value == 1
    assert paired_effect(np.zeros(10), np.arange(1.0, 11)).p_value == 1


def test_p_of_unpaired_effects_is_that_of_the_orders() -> None:
    """Of 5 and 4 numbers apart from each other, 1 of C(9, 4) orders is as extreme."""
    found = unpaired_effect(np.arange(10.0, 15), np.arange(4.0))
    assert found.p_value == pytest.approx(1 / 126)
    assert found.difference == pytest.approx(12 - 1.5)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_cover_the_difference_in_95_of_100_cases(paired: bool) -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        values, controls = rng.normal(1.5, 1, 30), rng.normal(0.5, 2, 30 if paired else 20)
        found = (paired_effect if paired else unpaired_effect)(values, controls)
        covered += found.low <= 1 <= found.high
    low, high = binom.ppf([0.001, 0.999], trials, 0.95)
    assert low <= covered <= high


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_keep_their_level(paired: bool) -> None:
    rng, fired, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        values, controls = rng.exponential(size=(2, 20))
        fired += (paired_effect if paired else unpaired_effect)(values, controls).p_value < 0.05
    assert fired <= binom.ppf(0.999, trials, 0.05)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rise": 0.99}, "transplants bring 0.99 nats, less than 1"),
        ({"drop": 0.49}, "removal costs 0.49 nats, less than 0.5"),
        ({"flips": 0.09}, "transplants turn 9% more than their control, less than 10%"),
        ({"p": 0.06}, "p is 0.06 after Holm's correction"),
    ],
)
def test_each_part_of_the_rule_is_needed(changed: dict[str, float], reason: str) -> None:
    (found,) = decided([outcome(**changed)])
    assert (found.state, found.reason) == (State.NOT_CONFIRMED, reason)
    assert not promising(outcome(**changed))
    (passed,) = decided([outcome(rise=1.0, drop=0.5, flips=0.1, p=0.049)])
    assert (passed.state, passed.reason) == (State.FINDING, "")
    assert promising(outcome())


def test_holm_is_over_all_that_was_tested() -> None:
    untested = Outcome(suspicion(seen()), State.NOT_TESTED, "why")
    found = decided([outcome(p=0.02), untested, outcome(p=0.02), outcome(p=0.5)])
    assert [each.p_holm for each in found if each.drop] == pytest.approx([0.06, 0.06, 0.5])
    assert [each.state for each in found] == [State.NOT_CONFIRMED, State.NOT_TESTED] + [
        State.NOT_CONFIRMED
    ] * 2
    assert found[1] is untested
    assert [each.state for each in decided([outcome(p=0.02), untested])] == [State.FINDING, State.NOT_TESTED]
    assert decided([]) == []


@pytest.mark.parametrize(
    ("donors", "flips", "kept", "state"),
    [
        (5, 0.25, 0.25, State.CANDIDATE),
        (4, np.nan, 0.25, State.UNDECIDABLE),
        (30, np.nan, 0.25, State.UNDECIDABLE),
        (5, 0.26, 0.25, State.NOT_CONFIRMED),
        (5, 0.25, 0.24, State.NOT_CONFIRMED),
    ],
)
def test_without_boxes_there_is_at_most_a_candidate(
    donors: int, flips: float, kept: float, state: State
) -> None:
    (found,) = decided([outcome(natural=Natural(donors, flips), kept=kept)])
    assert found.state == state
    assert bool(found.reason) == (state != State.CANDIDATE)


def test_findings_of_one_class_at_one_place_are_one() -> None:
    near, far = PATCH.roll((4, 4), (0, 1)), PATCH.roll((16, 16), (0, 1))
    own = PATCH.expand(30, -1, -1).clone()
    own[:14] = far  # at the place in 16 of 30 images
    given = decided(
        [
            outcome(rise=2, region=near),
            outcome(rise=3, region=far),
            outcome(rise=0),
            outcome(rise=4),
            outcome(rise=1, region=own),
            outcome(rise=5, target=1),
        ]
    )
    found = merged(given)
    assert [each.rise.difference for each in found] == [5, 4, 3, 0]
    assert [one.strength for one in found[1].merged] == [5, 5]
    assert [len(each.merged) for each in found] == [0, 2, 0, 0]
    assert merged([]) == []


@pytest.mark.parametrize(("shared", "stands"), [(4.0, 4.0), (3.9, 5.0)])
def test_a_shared_region_stands_for_a_group_if_it_brings_nearly_as_much(shared: float, stands: float) -> None:
    own = outcome(rise=5, region=PATCH.expand(30, -1, -1))
    (found,) = merged(decided([own, outcome(rise=shared)]))
    assert found.rise.difference == stands
    assert len(found.merged) == 1


def test_merging_keeps_what_was_measured() -> None:
    (one,) = decided([replace(outcome(), refined=PATCH)])
    (found,) = merged([one])
    assert found is one
    assert torch.equal(found.refined, PATCH)
