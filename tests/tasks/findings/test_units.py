"""Units of classes: frequencies, sets of one unit, agreement and information by hand and by scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from tasks.findings.units import MOST_IMAGES, class_units, information


def test_the_sets_of_a_class_by_hand() -> None:
    kept = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    found = class_units(kept, seed=0)
    assert found.images == 3  # the empty set does not count
    np.testing.assert_allclose(found.frequency, [1, 1 / 3, 1 / 3])
    np.testing.assert_allclose(found.alone, [1 / 3, 0, 0])
    assert found.agreement == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_one_set_or_none_has_no_agreement() -> None:
    one = class_units(np.array([[0, 1]], bool), seed=0)
    assert (one.images, list(one.alone)) == (1, [0, 1])
    assert math.isnan(one.agreement)
    none = class_units(np.zeros((4, 2), bool), seed=0)
    assert (none.images, list(none.frequency), list(none.alone)) == (0, [0, 0], [0, 0])
    assert math.isnan(none.agreement)


def test_the_agreement_of_a_large_class_is_that_of_a_part_of_it() -> None:
    rng = np.random.default_rng(0)
    kept = rng.random((MOST_IMAGES + 500, 12)) < 0.4
    small = class_units(kept[:MOST_IMAGES], seed=0)
    assert class_units(kept, seed=1).agreement == pytest.approx(small.agreement, abs=0.01)


def test_information_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 300)
    kept = np.stack([classes == 2, rng.random(300) < 0.5, np.ones(300, bool), classes % 2 == 0], 1)
    found = information(kept, classes * 7)
    np.testing.assert_allclose(found, [mutual_info_score(classes, each) for each in kept.T], atol=1e-12)
    assert found[2] == 0
