"""Numbers as the page writes them."""

from __future__ import annotations

import math

import pytest

from tasks.page.rendering import number


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0.000"),
        (0.25, "0.250"),
        (-3.5e-5, "-3.50e-05"),
        (123456.0, "1.23e+05"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_a_small_score_does_not_look_like_zero(value: float | None, told: str) -> None:
    assert number(value) == told


def test_a_number_of_digits_is_kept() -> None:
    assert number(1234.56, 1) == "1,234.6"
