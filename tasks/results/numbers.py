"""How measured numbers are written for people, in tables of the terminal, the page and exports.

The numbers of a column have the same decimals: as many as give the largest of them three significant digits,
and three where it is from 1 to 10, since scores that reach 1 are read beside those that do not. A number that
would keep fewer than two significant digits has decimals of its own, so that only zero looks like zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

NONE = "-"  # instead of a number that does not exist
_DIGITS, _LEAST = 3, 2  # significant digits of the largest number, and of any other one at least
_DECIMALS, _LARGE = 5, 1e9  # beyond these a number is written as a power of ten


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number as it is written in a column, or by itself.

    Parameters
    ----------
    value
        None and NaN stand for no number.
    decimals
        Those of its column, from :func:`decimals_of`; by default the number is by itself.
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    places = decimals_of([value]) if decimals is None else decimals
    if value:
        places = max(places, _LEAST - 1 - _exponent(value))
    if places > _DECIMALS or abs(value) >= _LARGE:
        return f"{value:.{_DIGITS - 1}e}"
    return f"{value + 0:,.{places}f}"  # adding 0 turns -0 into 0


def decimals_of(values: Iterable[float | None]) -> int:
    """Return the decimals of the numbers of a column; those that do not exist do not count."""
    known = (abs(value) for value in values if value is not None and math.isfinite(value))
    power = _exponent(max(known, default=0.0))
    return max(0, _DIGITS - 1 - power) if power else _DIGITS


def column_of(values: Sequence[float | None]) -> list[str]:
    """Return the numbers of a column."""
    decimals = decimals_of(values)
    return [number(value, decimals) for value in values]


def aligned(texts: Sequence[str], digit: str = " ", point: str = " ") -> list[str]:
    """Return numbers with blanks behind them, so that their points stand below each other at the right.

    Parameters
    ----------
    digit, point
        Blanks as wide as a digit and as the point.
    """
    behind = [len(text.partition(".")[2]) for text in texts if "e" not in text]
    most = max(behind, default=0)
    return [text if "e" in text else text + _blank(text, most, digit, point) for text in texts]


def _blank(text: str, most: int, digit: str, point: str) -> str:
    _, there, behind = text.partition(".")
    return (point if most and not there else "") + digit * (most - len(behind))


def _exponent(value: float) -> int:
    """Return the power of ten of the first digit that is written of a number; 0 for zero."""
    return int(f"{value:.{_DIGITS - 1}e}".partition("e")[2])
