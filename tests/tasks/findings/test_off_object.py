"""Off the object: Fisher's test by hand, the correction over classes, and the two regions."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch

from rule_toys import SIDE, SIZE, Rule, seen
from tasks.findings.decision import State, decided
from tasks.findings.examine import examine_class
from tasks.findings.off_object import little_on_object, off_object, suspected_classes


def test_fishers_p_is_the_hypergeometric_tail() -> None:
    shares = np.linspace(0.5, 1, 60)
    shares[:6] = 0.1  # six of the twenty images of class 0, and none of the others
    given = replace(seen(60), classes=np.repeat([0, 1, 2], 20), shares=shares)
    rows, p_value = little_on_object(given, 0)
    # Below the 5 % quantile of the 40 others lie 2 of them, and of class 0 all: the shares rise with the row.
    assert rows.tolist() == list(range(20))
    expected = sum(comb(22, k) * comb(38, 20 - k) for k in range(20, 21)) / comb(60, 20)
    assert p_value == pytest.approx(expected)


def test_images_without_an_object_do_not_count() -> None:
    given = seen(60)
    shares = np.where(np.arange(60) < 30, np.nan, given.shares)
    rows, _ = little_on_object(replace(given, shares=shares), 0)
    assert (rows >= 30).all()
    none = replace(given, shares=np.full(60, np.nan))
    assert little_on_object(none, 0)[1] == 1
    assert suspected_classes(none, np.arange(3)) == {}
    assert suspected_classes(given, np.arange(0)) == {}


def test_only_the_class_that_looks_beside_its_object_is_suspected() -> None:
    given = seen()
    found = suspected_classes(given, np.arange(3))
    assert set(found) == {0}
    rows, strength = found[0]
    assert set(rows) <= set(given.rows_of(0))
    assert strength > 3


def test_the_rate_is_kept_over_classes_of_noise() -> None:
    given, fired = seen(planted=False, count=400), 0
    rng = np.random.default_rng(0)
    for _ in range(100):
        shares = rng.random(400)
        fired += bool(suspected_classes(replace(given, shares=shares), np.arange(3)))
    assert fired <= 12


def test_both_regions_are_the_planted_place_and_avoid_the_objects() -> None:
    given = seen()
    rows, strength = suspected_classes(given, np.arange(3))[0]
    own, mean = off_object(given, 0, rows, strength, (SIZE, SIZE))
    assert (own.view, mean.view) == ("off_object_own", "off_object_mean")
    assert own.region.shape == (len(own.exemplars), SIZE, SIZE)
    assert not (own.region & given.grown_objects(own.exemplars)).any()
    for region in (mean.region, own.footprint):
        assert region[:SIDE, :SIDE].all()
        assert not region[SIDE + 5 :].any()  # a cell of 4 pixels, and interpolation
        assert not region[:, SIDE + 5 :].any()
    shares = given.shares[own.exemplars]
    assert (np.diff(shares) >= 0).all()
    outcomes = decided(examine_class(Rule(), given, [own, mean]))
    assert [each.state for each in outcomes] == [State.FINDING] * 2


def test_regions_of_a_map_of_zeros_are_empty() -> None:
    given = replace(seen(), maps=torch.zeros(120, 8, 8))
    own, mean = off_object(given, 0, given.rows_of(0), 1.0, (SIZE, SIZE))
    assert not own.region.any()
    assert not mean.region.any()
    assert examine_class(Rule(), given, [own])[0].reason == "its region is empty"
