"""The refined place is that of the rule; content of other classes is tried where there are no boxes."""

from dataclasses import replace

import numpy as np
import torch

from rule_toys import PATCH, SIZE, Rule, seen
from tasks.findings.natural import natural
from tasks.findings.refine import refined
from tasks.findings.trials import Trials


def refine(region: torch.Tensor, given, passes: int = 100_000) -> torch.Tensor | None:
    rows = given.rows_of(0)[:20]
    return refined(Trials(Rule(), given, 64), 0, rows, region, passes, np.random.default_rng(0))


def test_the_refined_place_of_a_large_region_is_the_patch() -> None:
    large = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    large[:20, :16] = True
    found = refine(large, seen())
    # Windows of 2 pixels that hang over the edge of the patch by 1 pixel cost exactly half.
    assert (found & PATCH).sum() == PATCH.sum()
    assert found.sum() <= 81
    assert not found[9:].any()


def test_a_region_that_does_nothing_has_no_refined_place() -> None:
    assert refine(PATCH.roll(20, 1), seen()) is None
    assert refine(torch.zeros_like(PATCH), seen()) is None


def test_too_few_passes_refine_nothing() -> None:
    windows = 9 * 9
    assert refine(PATCH, seen(), 4 * (windows + 1) - 1) is None
    assert refine(PATCH, seen(), 4 * (windows + 1)) is not None


def test_donors_are_as_salient_and_flip_to_their_own_class() -> None:
    """In a network that reads the class from one pixel, pasting that pixel always makes the donor's class."""
    given = seen(boxes=False)
    images = given.images(np.arange(120)).clone()
    images[:, 0, 0, 0] = torch.from_numpy(given.classes).float()

    class Reads(Rule):
        def logits(self, inputs):
            self.rows += len(inputs)
            return -(inputs[:, 0, 0, 0, None] - torch.arange(3.0)).square()

    maps = torch.zeros(120, 8, 8)
    maps[:, 0, 0] = 1
    given = replace(given, images=lambda rows: images[rows], maps=maps)
    network, rows = Reads(), given.rows_of(0)[:10]
    trials = Trials(network, given, 64)
    found = natural(trials, 0, rows, PATCH.expand(10, -1, -1), np.random.default_rng(0))
    assert (found.donors, found.flips, found.moved) == (80, 1, False)
    assert network.rows == 90
    unlabelled = Trials(Reads(), replace(given, labels=np.full(120, -1)), 64)
    assert natural(unlabelled, 0, rows, PATCH.expand(10, -1, -1), np.random.default_rng(0)) == found

    # Content beside that pixel makes no class: the recipient, which is of neither class, keeps its own.
    beside = PATCH.clone()
    beside[0, 0] = False
    assert natural(trials, 0, rows, beside.expand(10, -1, -1), np.random.default_rng(0)).flips == 0


def test_donors_that_are_salient_elsewhere_give_their_own_place() -> None:
    """Where the maps of other classes never lie in the region, as many of their strongest cells stand in."""
    given = seen(boxes=False)
    maps = torch.zeros(120, 8, 8)
    maps[given.rows_of(0), :2, :2] = 0.25
    maps[given.others(0), 4, 4:] = 0.25
    under = []

    class Watched(Rule):
        def logits(self, inputs):
            under.append(inputs.clone())
            return super().logits(inputs)

    black = torch.zeros(120, 3, SIZE, SIZE)
    black[:, 0] = torch.arange(120.0)[:, None, None]  # tells whose content is shown
    trials = Trials(Watched(), replace(given, maps=maps, images=lambda rows: black[rows]), 1000)
    rows = given.rows_of(0)[:10]
    found = natural(trials, 0, rows, PATCH.expand(10, -1, -1), np.random.default_rng(0))
    assert (found.donors, found.moved) == (80, True)
    (shown,) = under
    assert len(shown) == 90
    strongest = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    strongest[16:20, 16:] = True
    recipients, donors = shown[:, 0][:, ~strongest], shown[:, 0][:, strongest]
    assert (recipients == recipients[:, :1]).all()
    assert (donors == donors[:, :1]).all()
    assert (donors[:, 0] != recipients[:, 0]).all()


def test_fewer_than_five_donors_and_fewer_than_three_classes_decide_nothing() -> None:
    given = seen(boxes=False)
    maps = torch.zeros(120, 8, 8)
    maps[given.rows_of(0), :2, :2] = 0.25
    maps[given.others(0)[:4], :2, :2] = 0.25
    maps[given.others(0)[4:]] = 1 / 64
    network, rows, regions = Rule(), given.rows_of(0)[:10], PATCH.expand(10, -1, -1)
    few = natural(Trials(network, replace(given, maps=maps), 64), 0, rows, regions, np.random.default_rng(0))
    assert (few.donors, few.moved, np.isnan(few.flips)) == (4, True, True)
    two = replace(
        given,
        classes=(given.classes > 0) * 1,
        labels=(given.labels > 0) * 1,
        maps=torch.full((120, 8, 8), 1 / 64),
    )
    pair = natural(Trials(network, two, 64), 0, rows, regions, np.random.default_rng(0))
    assert (pair.donors, pair.moved, np.isnan(pair.flips)) == (80, False, True)
    assert network.rows == 0
