"""Random numbers that anyone can compute again from the seed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from explainers.numerics.randomness import random_bits, seed_of, uniform

WORD = (1 << 64) - 1
SEEDS = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=5)


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as published, in Python's unbounded integers, unsigned."""
    words, state = [], seed & WORD
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        words.append(z ^ (z >> 31))
    return words


def test_seed_zero_gives_the_published_words():
    words = [word & WORD for word in random_bits(torch.tensor([0]), 3)[0].tolist()]
    assert words == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(SEEDS)
def test_every_seed_gives_its_own_splitmix_stream_whatever_else_is_in_the_batch(seeds):
    words = random_bits(torch.tensor(seeds), 7)
    assert [[word & WORD for word in row] for row in words.tolist()] == [splitmix64(s, 7) for s in seeds]


@given(SEEDS)
def test_uniform_numbers_are_the_top_24_bits(seeds):
    expected = [[(word >> 40) / 2**24 for word in splitmix64(s, 5)] for s in seeds]
    numbers = uniform(torch.tensor(seeds), 5)
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == expected
    assert 0 <= numbers.min() <= numbers.max() < 1


def test_uniform_numbers_are_uniform_and_uncorrelated_between_neighbouring_seeds():
    numbers = uniform(torch.arange(2), 100_000).double()
    # Standard errors: 0.0009 for the mean, 0.0003 for the variance, 0.003 for the correlation.
    assert torch.allclose(numbers.mean(1), torch.tensor(0.5, dtype=torch.double), atol=0.004)
    assert torch.allclose(numbers.var(1), torch.tensor(1 / 12, dtype=torch.double), atol=0.0012)
    assert abs(torch.corrcoef(numbers)[0, 1]) < 0.013


def test_a_seed_stays_the_same_from_run_to_run():
    assert seed_of(0, "digit-00012") == 4797789520421887352
    assert seed_of() == 8238016292129134938


def test_seeds_of_different_parts_differ_even_if_they_spell_the_same():
    parts = [(1, 23), (12, 3), (123,), ("1", "2", "3"), (0, "a"), (1, "a"), (0, "b"), ("a", 0)]
    seeds = {seed_of(*p) for p in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert torch.tensor(list(seeds)).dtype == torch.int64
