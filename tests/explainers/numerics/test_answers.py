"""What is asked, how often, and that answers come back as they were given."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from explainers.numerics.answers import Answers

calls = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=9), max_size=6
)


def sets_of(numbers: list[int]) -> Tensor:
    """(M, 3) bool: the binary digits of each number."""
    return torch.tensor([[bool(number >> bit & 1) for bit in range(3)] for number in numbers])


def weigh(images: Tensor, keep: Tensor) -> Tensor:
    """Two float32 numbers that differ for every pair of an image and a set."""
    sizes = (keep * torch.tensor([1.0, 2.0, 4.0])).sum(1)
    return torch.stack([images + sizes / 10, -sizes], 1)


@given(calls)
@settings(max_examples=60, deadline=None)
def test_every_pair_is_asked_once_and_answered_as_if_it_were_asked_again(
    calls: list[list[tuple[int, int]]],
) -> None:
    asked: list[tuple[int, tuple[bool, ...]]] = []

    def ask(images: Tensor, keep: Tensor) -> Tensor:
        asked.extend(zip(images.tolist(), map(tuple, keep.tolist()), strict=True))
        return weigh(images, keep)

    answers = Answers(ask)
    for call in calls:
        images, keep = torch.tensor([image for image, _ in call]), sets_of([number for _, number in call])
        found = answers(images, keep)
        assert found.dtype == torch.float32
        assert torch.equal(found, weigh(images, keep))
    assert len(asked) == len(set(asked)) == len({pair for call in calls for pair in call})


def test_what_is_known_of_one_image_is_recalled_and_nothing_is_asked_for_it() -> None:
    answers = Answers(lambda images, keep: keep.any(1))
    answers(torch.tensor([5, 5, 6]), sets_of([0, 3, 1]))
    assert answers.recall(5, sets_of([3, 0, 3])).tolist() == [True, False, True]
    assert answers.recall(5, sets_of([3, 1])) is None
    assert answers.recall(6, sets_of([3])) is None
