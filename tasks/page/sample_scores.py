"""The scores and curves of some samples, with the place of each score in the whole dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.run import Run
from storage.scores import read_curves_at, read_numbers
from tasks.results.numbers import number

WIDTH, HEIGHT = 200, 100  # of a panel of curves, in its own units


@dataclass(frozen=True)
class Score:
    """One score in words, and the share of the dataset's maps that score worse, in percent.

    Equal scores count half. In a column that ranks nobody, it is the share with a lower number. ``value`` is
    empty if there is no score, and ``place`` is None then.
    """

    value: str
    place: int | None


@dataclass(frozen=True)
class ScoreRow:
    """The scores of all explainers of a run, in order, in one column; ``better`` is empty in references."""

    column: str
    better: str
    scores: list[Score]


@dataclass(frozen=True)
class Line:
    """The curve of one explainer: its number in the run, and the ``points`` of an SVG polyline."""

    explainer: int
    points: str


@dataclass(frozen=True)
class Curves:
    """The curves of a sample in one column, from their first points to their last.

    ``low`` and ``high`` are the values at the bottom and the top of the panel.
    """

    column: str
    better: str
    low: str
    high: str
    lines: list[Line]


# Gives columns of an explainer's scores, as :func:`storage.scores.read_numbers` reads them.
Numbers = Callable[[Run, str, Set[str]], Mapping[str, NDArray[np.float64]]]


class ScoresOf:
    """The scores and curves of some rows of maps; one explainer's scores are in memory at a time."""

    def __init__(self, run: Run, rows: Sequence[int], numbers_of: Numbers = read_numbers) -> None:
        self._columns = {name: about.better or "" for name, about in run.columns.items() if not about.pooled}
        # What ranks explainers comes first.
        self._columns = dict(sorted(self._columns.items(), key=lambda item: not item[1]))
        self._scores: list[dict[str, dict[int, Score]]] = []
        self._curves: dict[str, dict[int, dict[int, NDArray[np.float32]]]] = {}
        curved = {name for name, better in self._columns.items() if better}
        for place, name in enumerate(run.explainers):
            numbers = numbers_of(run, name, self._columns.keys())
            self._scores.append(
                {
                    column: dict(zip(rows, placed(values, rows, self._columns[column]), strict=True))
                    for column, values in numbers.items()
                }
            )
            for column, curves in read_curves_at(run, name, curved, rows).items():
                self._curves.setdefault(column, {})[place] = curves
        self._range = {name: (run.columns[name].low, run.columns[name].high) for name in curved}

    def rows_of(self, row: int) -> list[ScoreRow]:
        """The scores of a map's sample, column by column; columns without any score are left out."""
        found = []
        for column, better in self._columns.items():
            scores = [each[column][row] for each in self._scores]
            if any(score.value for score in scores):
                found.append(ScoreRow(column, better, scores))
        return found

    def curves_of(self, row: int) -> list[Curves]:
        """The panels of a map's sample, one per column that has curves."""
        found = []
        for column in self._columns:
            own = {
                place: curves[row] for place, curves in self._curves.get(column, {}).items() if row in curves
            }
            if own:
                found.append(self._panel(column, own))
        return found

    def _panel(self, column: str, curves: dict[int, NDArray[np.float32]]) -> Curves:
        low, high = self._range[column]
        values = np.concatenate(list(curves.values()))
        inside = np.isfinite([low, high]).all() and low <= values.min() and values.max() <= high
        if not inside:  # curves may leave the range of their column's number
            low, high = float(values.min()), float(values.max())
        lines = [Line(place, _points(curve, low, high)) for place, curve in curves.items()]
        return Curves(column, self._columns[column], f"{low:.3g}", f"{high:.3g}", lines)


def placed(values: NDArray[np.float64], rows: Sequence[int], better: str) -> list[Score]:
    """The scores at some rows of all ``values`` (maps,), each with its place among those that are finite."""
    known, own = values[np.isfinite(values)], values[list(rows)]
    below = np.array(
        [np.count_nonzero(known < value) + np.count_nonzero(known == value) / 2 for value in own]
    )
    shares = below / max(1, len(known))
    worse = 1 - shares if better == "lower" else shares
    return [
        Score(number(value), round(100 * share)) if np.isfinite(value) else Score("", None)
        for value, share in zip(own.tolist(), worse.tolist(), strict=True)
    ]


def _points(curve: NDArray[np.float32], low: float, high: float) -> str:
    across = np.linspace(0, WIDTH, len(curve)).round().astype(int)
    # A point for every unit of the panel is as fine as the eye sees.
    across, places = np.unique(across, return_index=True)
    curve = curve[places]
    down = HEIGHT * (1 - (curve - low) / ((high - low) or 1))
    return " ".join(f"{x},{y:.1f}" for x, y in zip(across, down, strict=True))
