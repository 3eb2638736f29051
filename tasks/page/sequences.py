"""Texts and tensors in the page: the tokens of a text with their shades, the lines or bars of a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.pictures.tensor_sheet import BARS
from tasks.pictures.text_sheet import runs_of_words, shown
from tasks.results.numbers import column_of

_POINTS = 600  # of a line, at most
_LINES = 8  # channels of a tensor that are drawn, at most
HEIGHT = 100  # of a drawing, in its own units; it is as wide as the series has values


@dataclass(frozen=True)
class Token:
    """The visible text of one token, whether a blank precedes it, and its shade.

    ``shade`` is from 0 to 1 with two digits, and empty if the token cannot be hidden.
    """

    text: str
    apart: bool
    shade: str


@dataclass(frozen=True)
class Series:
    """The drawing of one tensor.

    Attributes
    ----------
    width
        Number of values along the axis.
    paths
        The ``d`` of an SVG path per channel, in ``width`` x ``HEIGHT`` units.
    bars
        Whether the paths are bars; otherwise they are lines.
    told
        The range of the values, and what is left out, in words.
    """

    width: int
    paths: list[str]
    bars: bool
    told: str


def token_texts(tokens: Sequence[str], words: Sequence[int]) -> list[tuple[str, bool]]:
    """The visible text of each token, and whether a blank precedes it, as at the beginning of a word."""
    return [
        (shown(tokens[i], joined=i > start), i == start and i > 0)
        for start, stop in runs_of_words(words)
        for i in range(start, stop)
    ]


def shaded_tokens(texts: Sequence[tuple[str, bool]], saliency: NDArray[np.floating[Any]]) -> list[Token]:
    """The tokens with their saliency in [0, 1]; it is negative where a token cannot be hidden."""
    return [
        Token(text, apart, "" if value < 0 else f"{value:.2f}".rstrip("0").rstrip("."))
        for (text, apart), value in zip(texts, saliency.tolist(), strict=True)
    ]


def series_of(values: NDArray[Any]) -> Series:
    """Draw a tensor (C, T) as the contact sheet does: a row of few numbers as bars, others as lines."""
    channels, width = values.shape
    bars = channels == 1 and width <= BARS
    known = np.nan_to_num(values.astype(np.float64))
    low, high = float(known.min()), float(known.max())
    told = f"values from {' to '.join(column_of([low, high]))}"
    if bars:
        low, high = min(low, 0), max(high, 0)
    span = (high - low) or 1
    heights = HEIGHT * (high - known) / span
    if bars:
        zero = HEIGHT * high / span
        return Series(width, [_bars(heights[0], zero)], True, told)
    if channels > _LINES:
        told += f"; the first {_LINES} of {channels} channels"
    if width > _POINTS:
        told += "; extremes of neighbouring values"
    return Series(width, [_line(each) for each in heights[:_LINES]], False, told)


def _bars(heights: NDArray[np.float64], zero: float) -> str:
    return "".join(f"M{i + 0.1:g} {zero:.3g}V{y:.3g}h.8V{zero:.3g}z" for i, y in enumerate(heights))


def _line(heights: NDArray[np.float64]) -> str:
    """A line through the middles of the sites; of a long series the extremes of parts, in their order."""
    places = np.arange(len(heights))
    if len(heights) > _POINTS:
        parts = np.array_split(places, _POINTS // 2)
        ends = [sorted({part[heights[part].argmin()], part[heights[part].argmax()]}) for part in parts]
        places = np.concatenate(ends)
    return "M" + "L".join(f"{place + 0.5:g} {heights[place]:.1f}" for place in places)
