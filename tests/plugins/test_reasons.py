"""Whatever an exception says, a message has one line of it, and never none."""

from __future__ import annotations

import pytest
from torch import nn

from plugins.reasons import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such luck"), "no such luck"),
        (RuntimeError("\n  mat1 and mat2\ncannot be multiplied"), "mat1 and mat2"),
        (KeyError("name"), "'name'"),
        (AssertionError(), "AssertionError"),
        (ValueError(" \n "), "ValueError"),
        (ValueError("two\r\nlines"), "two"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_it_is_the_first_line_or_the_class(error: BaseException, expected: str) -> None:
    assert first_line(error) == expected


def test_a_line_that_announces_the_next_has_it_beside_it() -> None:
    with pytest.raises(RuntimeError) as refusal:
        nn.Linear(2, 3).load_state_dict({})
    assert first_line(refusal.value) == (
        'Error(s) in loading state_dict for Linear: Missing key(s) in state_dict: "weight", "bias".'
    )


def test_a_long_line_is_cut() -> None:
    found = first_line(ValueError("path/" * 100))
    assert len(found) == 200
    assert found.endswith("...")
