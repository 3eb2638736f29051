"""The searches themselves, on made-up tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from explainers.numerics.delta_debugging import Sums, ddmin, greedy_passes, search_together


def needs(*units: int) -> Callable[[Tensor], bool]:
    return lambda keep: bool(keep[list(units)].all())


def run(
    order: Sequence[int], oracles: list[Callable[[Tensor], bool]]
) -> tuple[Tensor, list[list[tuple[int, bytes]]]]:
    """The sets found, and the (image, set) pairs of every batch of tests."""
    batches = []

    def test(images: Tensor, keep: Tensor) -> Tensor:
        pairs = list(zip(images.tolist(), keep, strict=True))
        batches.append([(image, bytes(row.tolist())) for image, row in pairs])
        return torch.tensor([oracles[image](row) for image, row in pairs])

    return search_together([ddmin(torch.tensor(order)) for _ in oracles], test), batches


def test_the_published_example_is_reduced_to_its_three_changes() -> None:
    """Zeller and Hildebrandt 2002, fig. 5: of eight changes, 1, 7 and 8 fail together and in no subset."""
    found, _ = run(range(8), [needs(0, 6, 7)])
    assert found[0].nonzero()[:, 0].tolist() == [0, 6, 7]


def test_images_share_batches_and_no_set_is_tested_twice_for_an_image() -> None:
    oracles = [needs(3), needs(0, 15), needs(*range(16))]
    found, batches = run(range(16), oracles)
    alone = [run(range(16), [oracle]) for oracle in oracles]
    assert torch.equal(found, torch.cat([sets for sets, _ in alone]))
    assert len(batches) == max(len(own) for _, own in alone)
    asked = [pair for batch in batches for pair in batch]
    assert len(asked) == len(set(asked))


def test_a_single_unit_is_returned_without_a_test() -> None:
    found, batches = run(range(1), [needs(0), needs(0)])
    assert found.tolist() == [[True], [True]]
    assert batches == []


@given(st.sets(st.integers(0, 19), min_size=1), st.permutations(range(20)))
@settings(max_examples=60, deadline=None)
def test_a_set_all_of_which_is_needed_is_found_in_any_order(needed: set[int], order: list[int]) -> None:
    found, _ = run(order, [needs(*needed)])
    assert set(found[0].nonzero()[:, 0].tolist()) == needed


def textbook(order: list[int], preserved: Callable[[Tensor], bool]) -> set[int]:
    """Zeller and Hildebrandt 2002, fig. 4, one test after the other, every chunk and complement of a step."""

    def mask(units: Sequence[int]) -> Tensor:
        return torch.zeros(len(order), dtype=torch.bool).index_fill_(0, torch.tensor(units, dtype=int), True)

    kept, chunks = list(order), 2
    while len(kept) > 1:
        parts = [part.tolist() for part in torch.tensor(kept).tensor_split(chunks)]
        rests = [[unit for unit in kept if unit not in part] for part in parts]
        alone = [preserved(mask(part)) for part in parts]
        without = [preserved(mask(rest)) for rest in rests]
        if any(alone):
            kept, chunks = parts[alone.index(True)], 2
        elif any(without):
            kept = rests[max(index for index, each in enumerate(without) if each)]
            chunks = max(chunks - 1, 2)
        elif chunks < len(kept):
            chunks = min(2 * chunks, len(kept))
        else:
            break
    return set(kept)


@given(st.integers(0, 2**31 - 1), st.integers(2, 14), st.floats(0.02, 0.6))
@settings(max_examples=120, deadline=None)
def test_asking_for_few_sets_at_once_finds_what_asking_for_all_of_them_finds(
    seed: int, units: int, share: float
) -> None:
    """Of sets that are preserved at random, so that a larger set may fail where a smaller one suffices."""

    def preserved(keep: Tensor) -> bool:
        if keep.all() or not keep.any():
            return bool(keep.all())
        number = int((keep.long() << torch.arange(units)).sum())
        return float(torch.rand(1, generator=torch.Generator().manual_seed(seed + number))) < share

    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed)).tolist()
    found, batches = run(order, [preserved])
    assert set(found[0].nonzero()[:, 0].tolist()) == textbook(order, preserved)
    asked = [pair for batch in batches for pair in batch]
    assert len(asked) == len(set(asked))


def test_units_freed_by_later_removals_go_in_a_further_pass() -> None:
    """Target 0, strongest rival 1, so that units are tried as they are numbered; all by hand.

    Together (4, 1.5, 0). Without unit 0 class 2 wins, (4, 1.5, 5): it stays. Unit 1 goes, (3, 1.5, -5).
    Without unit 2 class 1 would win, (0, 0.5, -5). Now unit 0 can go as well: (3, 1.5, 0).
    """
    rows = torch.tensor([[0.0, 0.0, -5.0], [1.0, 0.0, 5.0], [3.0, 1.0, 0.0]])
    sums = Sums(torch.tensor([[0.0, 0.5, 0.0]]), torch.ones(1, 3), rows, torch.arange(3)[None])
    assert greedy_passes(sums, torch.tensor([0])).tolist() == [[False, False, True]]
