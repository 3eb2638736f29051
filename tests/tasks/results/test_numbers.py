"""How numbers are written: digits that are known, below each other, and nothing but zero as zero."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.results.numbers import aligned, column_of, decimals_of, number

MEASURED = st.lists(st.floats(-1e12, 1e12) | st.floats(-2, 2) | st.none() | st.just(nan), max_size=6)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.937, 0.0526, 0.00414, 1.0], ["0.937", "0.053", "0.0041", "1.000"]),
        ([0.937, 0.0004, 0.0], ["0.937", "0.00040", "0.000"]),
        ([412.3, 15.3, 3.14, 0.45, 0.0021, None], ["412", "15", "3.1", "0.45", "0.0021", "-"]),
        ([12.34, 40.0], ["12.3", "40.0"]),
        ([0.0123, 0.00004], ["0.0123", "4.00e-05"]),
        ([12345.6, 7.0], ["12,346", "7.0"]),
        ([99.96, 0.5], ["100", "0.50"]),
        ([0.99996], ["1.000"]),
        ([-0.0, -0.5, inf, -inf, nan], ["0.000", "-0.500", "∞", "-∞", "-"]),
        ([2e-7], ["2.00e-07"]),
        ([3e11], ["3.00e+11"]),
    ],
)
def test_a_column_has_three_digits_of_its_largest_number(values: list[float | None], told: list[str]) -> None:
    assert column_of(values) == told


@given(MEASURED)
def test_every_number_keeps_two_digits_and_only_zero_looks_like_zero(values: list[float | None]) -> None:
    for value, told in zip(values, column_of(values), strict=True):
        if value is None or isnan(value):
            assert told == "-"
            continue
        assert float(told.replace(",", "")) == pytest.approx(value, rel=0.05)
        assert (float(told.replace(",", "")) == 0) == (value == 0)


@given(MEASURED)
def test_a_number_by_itself_is_a_column_of_one(values: list[float | None]) -> None:
    assert [number(value) for value in values] == [column_of([value])[0] for value in values]
    assert all(decimals_of([value]) >= 0 for value in values)


def test_points_stand_below_each_other() -> None:
    assert aligned(["412", "3.1", "0.0021", "-", "4.00e-05"]) == [
        "412     ",
        "3.1   ",
        "0.0021",
        "-     ",
        "4.00e-05",
    ]
    assert aligned(["1", "0.5"], "d", "p") == ["1pd", "0.5"]
    assert aligned(["12", "3"]) == ["12", "3"]
    assert aligned([]) == []
