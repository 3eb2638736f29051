"""Exact ranks with seeded ties."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from explainers.numerics.randomness import random_bits
from tasks.metrics.ranking import ranks

# Few values, so that most maps have ties.
MAPS = hnp.arrays(np.float32, (3, 4, 5), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=3, max_size=3)


@given(MAPS, SEEDS)
def test_ranks_equal_sorting_by_value_then_by_the_seeds_random_words(maps, seeds):
    found = ranks(torch.from_numpy(maps), torch.tensor(seeds)).tolist()
    words = random_bits(torch.tensor(seeds), 20).tolist()
    for row, one, keys in zip(found, maps.reshape(3, -1), words, strict=True):
        order = sorted(range(20), key=lambda pixel: (-one[pixel], keys[pixel]))
        assert [row[pixel] for pixel in order] == list(range(20))


@given(MAPS, SEEDS)
@settings(max_examples=50)
def test_ranks_are_a_permutation_that_never_puts_a_lower_value_first(maps, seeds):
    maps, seeds = torch.from_numpy(maps), torch.tensor(seeds)
    found = ranks(maps, seeds)
    assert torch.equal(found.sort(1).values, torch.arange(20).expand(3, 20))
    assert (maps.flatten(1).gather(1, found.argsort(1)).diff(dim=1) <= 0).all()


@given(MAPS, SEEDS, st.permutations(range(3)))
@settings(max_examples=50)
def test_ranks_do_not_depend_on_the_batch_or_its_order(maps, seeds, rows):
    maps, seeds = torch.from_numpy(maps), torch.tensor(seeds)
    together = ranks(maps, seeds)
    assert torch.equal(ranks(maps[rows], seeds[rows]), together[rows])
    assert torch.equal(torch.cat([ranks(maps[i : i + 1], seeds[i : i + 1]) for i in range(3)]), together)


def test_every_pixel_of_a_flat_map_is_first_equally_often():
    first = ranks(torch.zeros(6000, 2, 3), torch.arange(6000)).argmin(1)
    # 1000 expected of each of six pixels, standard deviation 29.
    assert (first.bincount(minlength=6) - 1000).abs().max() < 120


def test_ties_are_shuffled_only_among_themselves():
    maps = torch.tensor([[[1.0, 0.5], [0.5, 0.0]]]).expand(50, 2, 2)
    found = ranks(maps, torch.arange(50))
    assert (found[:, 0] == 0).all()
    assert (found[:, 3] == 3).all()
    assert set(found[:, 1].tolist()) == {1, 2}


def test_a_map_of_nan_is_ranked_without_disturbing_its_neighbours():
    maps = torch.rand(3, 4, 4)
    clean = ranks(maps, torch.arange(3))
    maps[1] = torch.nan
    found = ranks(maps, torch.arange(3))
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert torch.equal(found[1].sort().values, torch.arange(16))
