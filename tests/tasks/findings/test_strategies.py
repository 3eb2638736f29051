"""Strategies: planted clusters are found, and the defined outcomes where there is nothing to cluster."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from tasks.findings.strategies import EXEMPLARS, MOST_MAPS, eigengap, strategies_of


def _maps(counts: list[int], seed: int = 0) -> np.ndarray:
    """Noisy maps of unit sum, in groups of these sizes with their evidence in different cells."""
    rng = np.random.default_rng(seed)
    maps = rng.random((sum(counts), 6, 6)).astype(np.float32) * 0.1
    start = 0
    for group, count in enumerate(counts):
        maps[start : start + count, group, 2 * (group % 3)] += 3
        start += count
    return maps / maps.sum((1, 2), keepdims=True)


def _numbers(found, count: int) -> np.ndarray:
    numbers = np.full(count, -1)
    for number, cluster in enumerate(found.clusters):
        numbers[cluster.rows] = number
    return numbers


@pytest.mark.parametrize("counts", [[14, 12], [40, 30, 20, 12]])
def test_planted_groups_are_the_clusters(counts: list[int]) -> None:
    maps = _maps(counts)
    found = strategies_of(maps, np.arange(len(maps)), seed=3)
    assert [len(each.rows) for each in found.clusters] == counts
    assert adjusted_rand_score(np.repeat(np.arange(len(counts)), counts), _numbers(found, len(maps))) == 1
    for each in found.clusters:
        np.testing.assert_allclose(each.mean, maps[each.rows].mean(0), atol=1e-6)
        assert each.mean.sum() == pytest.approx(1, abs=1e-5)
        distance = np.square(maps[each.rows] - maps[each.rows].mean(0)).sum((1, 2))
        nearest = each.rows[np.argsort(distance)[:EXEMPLARS]]
        assert set(each.exemplars) == set(nearest)
        assert each.exemplars[0] == nearest[0]


def test_maps_of_other_classes_do_not_count() -> None:
    maps = _maps([30, 30])
    own = np.arange(60)[::2]
    alone = strategies_of(maps[own], np.arange(30), seed=0)
    among = strategies_of(maps, own, seed=0)
    assert [list(own[each.rows]) for each in alone.clusters] == [list(each.rows) for each in among.clusters]


def test_few_maps_are_one_cluster_and_empty_ones_belong_to_none() -> None:
    maps = _maps([5, 4])
    maps[2] = 0
    found = strategies_of(maps, np.arange(9), seed=0)
    assert [list(each.rows) for each in found.clusters] == [[0, 1, 3, 4, 5, 6, 7, 8]]
    assert list(found.empty) == [2]
    assert found.reason == "it has 8 maps, fewer than 10"


def test_nothing_is_no_cluster() -> None:
    zero = strategies_of(np.zeros((12, 3, 3), np.float32), np.arange(12), seed=0)
    assert (zero.clusters, len(zero.empty), zero.reason) == ([], 12, "every map is zero everywhere")
    none = strategies_of(_maps([12]), np.arange(0), seed=0)
    assert (none.clusters, len(none.empty), none.reason) == ([], 0, "it has no map")


def test_equal_maps_are_a_defined_outcome() -> None:
    maps = np.repeat(_maps([1]), 40, axis=0)
    found = strategies_of(maps, np.arange(40), seed=0)
    assert sorted(np.concatenate([each.rows for each in found.clusters])) == list(range(40))


def test_large_classes_are_clustered_by_a_part_of_their_maps() -> None:
    counts = [MOST_MAPS, 300]
    maps = _maps(counts)
    found = strategies_of(maps, np.arange(len(maps)), seed=1)
    assert sorted(np.concatenate([each.rows for each in found.clusters])) == list(range(sum(counts)))
    assert {len(set(each.rows >= MOST_MAPS)) for each in found.clusters} == {1}  # no cluster mixes the groups


def test_the_eigengap_is_the_first_wide_one_and_at_most_eight() -> None:
    assert eigengap(np.array([0, 0, 0, 0.7, 0.8, 0.9])) == 3
    assert eigengap(np.array([0, 0.9, 0.91, 0.92])) == 1
    assert eigengap(np.array([0, 0.1])) == 1
    assert eigengap(np.array([*np.zeros(8), 1, 9])) == 8  # the ninth gap does not count
