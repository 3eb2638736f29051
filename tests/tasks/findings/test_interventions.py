"""The interventions measure a planted rule exactly, count their passes, and depend on no batch."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from rule_toys import BIAS, PATCH, SIDE, SIZE, WEIGHT, Rule, seen, suspicion
from tasks.findings.decision import Outcome, State, decided
from tasks.findings.examine import examine_class, suspicions_of
from tasks.findings.interventions import remove, transplant
from tasks.findings.regions import matched_places
from tasks.findings.trials import Trials


def outcomes_of(given, *suspicions, **chosen) -> list[Outcome]:
    return decided(examine_class(Rule(), given, suspicions, **chosen))


def test_the_planted_rule_is_measured_in_nats() -> None:
    given = seen()
    (found,) = outcomes_of(given, *suspicions_of(given, 0, (SIZE, SIZE)))
    assert found.state == State.FINDING
    assert found.drop.mean == pytest.approx(WEIGHT, abs=1e-5)
    assert found.drop.control == pytest.approx(0, abs=1e-5)
    assert found.rise.mean == pytest.approx(WEIGHT, abs=1e-5)
    assert found.rise.control == pytest.approx(0, abs=1e-5)
    assert (found.flips.mean, found.flips.control) == (1, 0)
    assert found.removal.kept == 0
    assert found.p_holm < 1e-6


def test_log_odds_are_those_of_the_rule() -> None:
    given, network = seen(), Rule()
    scores = Trials(network, given, 7).whole(np.array([0, 1, 3]), 0)
    with_it, without = WEIGHT - BIAS - log(2), -BIAS - log(2)
    torch.testing.assert_close(scores[:, 0], torch.tensor([with_it, without, with_it]).double())
    assert scores[:, 1].tolist() == [1, 0, 1]


def test_half_of_the_patch_has_half_of_the_effect() -> None:
    half = PATCH.clone()
    half[:, 4:] = False
    (found,) = outcomes_of(seen(), suspicion(seen(), half))
    assert found.drop.mean == pytest.approx(WEIGHT / 2, abs=1e-5)
    assert found.rise.mean == pytest.approx(WEIGHT / 2, abs=1e-5)
    # A matched place may lie on the other half of the patch, but nowhere else does a class lose anything.
    assert 0 <= found.drop.control <= WEIGHT / 2


@pytest.mark.parametrize("boxes", [True, False])
def test_a_region_that_does_nothing_is_not_confirmed(boxes: bool) -> None:
    given = seen(boxes=boxes)
    (found,) = outcomes_of(given, suspicion(given, PATCH.flip(1)))
    assert found.state == State.NOT_CONFIRMED
    assert found.rise.difference == pytest.approx(0, abs=1e-5)
    assert found.p_value == 1
    assert "transplants bring 0.00 nats" in found.reason


def test_without_boxes_there_is_no_finding() -> None:
    given = seen(boxes=False)
    (found,) = outcomes_of(given, suspicion(given))
    assert found.state != State.FINDING


def test_passes_are_those_of_the_network() -> None:
    given, network = seen(), Rule()
    found = examine_class(network, given, [suspicion(given), suspicion(given, PATCH.flip(1))])
    assert sum(each.passes for each in found) == network.rows
    # 30 exemplars: whole, 3 fills and 4 matched places; 30 recipients: whole, 3 donors and 3 controls.
    assert found[1].passes == 30 * 8 + 30 * 7
    # Windows of 2 pixels, each moved by 1, that touch the patch and the pixel around it, in 16 exemplars.
    assert found[0].passes == found[1].passes + 16 * (1 + 9 * 9)


def test_without_boxes_content_of_other_classes_is_tried_as_well() -> None:
    given, network = seen(boxes=False), Rule()
    (found,) = examine_class(network, given, [suspicion(given, PATCH.flip(1))])
    natural = 0 if found.natural.donors < 5 else 90
    assert found.passes == network.rows == 30 * 8 + 30 * 7 + natural


def test_passes_are_bounded_and_the_strongest_come_first() -> None:
    given, network = seen(), Rule()
    weak, strong = suspicion(given, strength=1), suspicion(given, strength=2)
    found = examine_class(network, given, [weak, strong], passes=500)
    assert [each.suspicion for each in found] == [strong, weak]
    assert found[1].state == State.NOT_TESTED
    assert found[1].reason == "the passes of the class are used up"
    assert network.rows <= 500


def test_no_more_than_eight_are_tested() -> None:
    given = seen()
    found = examine_class(Rule(), given, [suspicion(given, strength=s) for s in range(9)], passes=10**6)
    assert [each.state for each in found] == [State.NOT_CONFIRMED] * 8 + [State.NOT_TESTED]
    assert found[-1].suspicion.strength == 0


def test_nothing_depends_on_the_batch_or_on_memory() -> None:
    given = seen()
    (one,) = examine_class(Rule(), given, [suspicion(given)], forwards=64)
    (two,) = examine_class(Rule(memory=5), given, [suspicion(given)], forwards=7)
    np.testing.assert_allclose(one.removal.drops, two.removal.drops, atol=1e-6)
    np.testing.assert_array_equal(one.removal.controls.round(5), two.removal.controls.round(5))
    np.testing.assert_array_equal(one.transplant.donors, two.transplant.donors)
    assert one.passes == two.passes


def test_the_object_is_taken_out_of_the_region() -> None:
    """Content of the objects is never moved: a network that reads objects alone sees no difference."""
    given = seen()
    everything = torch.ones(SIZE, SIZE, dtype=torch.bool)
    everything[0, 0] = False

    class Moved(Rule):
        def logits(self, inputs):
            self.inputs = inputs
            return super().logits(inputs)

    network = Moved()
    rows = given.rows_of(0)[:10]
    objects = given.grown_objects(rows)
    regions = everything & ~objects
    trials = Trials(network, given, 10_000)
    others = given.others(0)
    pasted = transplant(trials, 0, rows, regions, np.random.default_rng(0))
    # The last pass is that of the controls: wherever an object of the recipient lies, it shows the recipient.
    shown = network.inputs.view(len(pasted.rows), 3, 3, SIZE, SIZE)
    for row, its in zip(pasted.rows, shown, strict=True):
        own = given.grown_objects(np.array([row]))[0]
        assert torch.equal(its[:, :, own], given.images(np.array([row]))[0, :, own].expand(3, -1, -1))
    assert set(pasted.rows) <= set(others)
    removal = remove(trials, 0, rows, regions, np.random.default_rng(0))
    assert not removal.paired  # the region is larger than a quarter of the image


@pytest.mark.parametrize("classes", [3, 2])
def test_controls_of_large_regions_get_content_of_other_classes_than_their_own(classes: int) -> None:
    given = replace(seen(boxes=False), classes=np.arange(120) % classes, labels=np.arange(120) % classes)
    told = torch.zeros(120, 3, SIZE, SIZE) + torch.arange(120)[:, None, None, None]  # whose content is shown
    given = replace(given, images=lambda rows: told[rows])

    class Watched(Rule):
        def logits(self, inputs):
            self.inputs = inputs
            return super().logits(inputs)

    network, large = Watched(), torch.zeros(30, SIZE, SIZE, dtype=torch.bool)
    large[:, :, :20] = True
    removal = remove(Trials(network, given, 1000), 0, given.rows_of(0)[:30], large, np.random.default_rng(0))
    assert (removal.paired, len(removal.controls)) == (False, 30)
    filled, fills = (network.inputs[:, 0, 0, column].numpy().astype(int) for column in (-1, 0))
    assert len(fills) == 90
    assert (filled != fills).all()
    assert (given.classes[fills] != 0).all()
    if classes == 3:
        assert (given.classes[fills] != given.classes[filled]).all()


def test_a_region_that_fits_nowhere_else_is_compared_with_images_of_other_classes() -> None:
    """The object is all but the patch, so that a matched place would be empty, and cost nothing."""
    objects = torch.ones(SIZE, SIZE, dtype=torch.bool)
    objects[: SIDE + 1, : SIDE + 1] = False
    given = replace(seen(), objects=lambda rows: objects.expand(len(rows), -1, -1))
    (found,) = outcomes_of(given, suspicion(given))
    assert (found.state, found.removal.paired) == (State.FINDING, False)
    assert len(found.removal.controls) == 30
    assert found.drop.mean == pytest.approx(WEIGHT, abs=1e-5)
    assert found.drop.control == pytest.approx(0, abs=1e-5)

    hidden = torch.ones_like(objects)
    shown = replace(given, objects=lambda rows: torch.stack([hidden if n % 3 else objects for n in rows]))
    (found,) = outcomes_of(shown, suspicion(shown))
    assert found.state == State.ON_THE_OBJECT
    assert found.reason == "it fits beside the object of 0 images of other classes only"


def test_a_region_on_the_object_is_not_tested() -> None:
    given, network = seen(), Rule()
    own = given.objects(given.rows_of(0)[:30])
    (found,) = examine_class(network, given, [suspicion(given, own)])
    assert found.state == State.ON_THE_OBJECT
    assert network.rows == 0


def test_suspicions_without_a_test_say_why() -> None:
    given, network = seen(), Rule()
    few = seen(count=27)
    empty, whole = torch.zeros_like(PATCH), torch.ones_like(PATCH)
    assert examine_class(network, given, [suspicion(given, empty)])[0].reason == "its region is empty"
    assert (
        examine_class(network, given, [suspicion(given, whole)])[0].reason == "its region is the whole image"
    )
    assert examine_class(network, few, [suspicion(few)])[0].reason == "it is about 9 images, fewer than 10"
    assert network.rows == 0


def test_matched_places_have_the_area_and_miss_what_is_blocked() -> None:
    regions = torch.zeros(2, 20, 24, dtype=torch.bool)
    regions[0, 3:7, 4:9] = True
    regions[1, [0, -1]] = True  # two lines, which come in on the other side when they move
    blocked = regions.clone()
    blocked[0, 10:, :] = True
    places = matched_places(regions, blocked, 4, np.random.default_rng(0))
    assert places.shape == (2, 4, 20, 24)
    assert not (places & blocked[:, None]).any()
    assert places.sum((2, 3))[1].tolist() == [48] * 4
    assert (places.sum((2, 3))[0] >= 19).all()  # 5 % may be lost, so that there is a choice
    assert len(places[0].flatten(1).unique(dim=0)) == 4
