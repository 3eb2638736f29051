"""How charts tell explainers apart: by a colour, dashes and the shape of a point, the same in every chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.characters import shown
from storage.run import Run
from tasks.page.charts.chart import Spec, nominal
from tasks.results.leaderboard import is_control

# Each differs from every other one and from the grey by 21 or more in CIELAB, also as people with any of the
# three kinds of colour blindness see them, and has a contrast of at least 3:1 with white and with #16181d.
PALETTE = ("#1E96E1", "#C31E4B", "#C38700", "#4B5AD2", "#A54B0F", "#964B96")
GREY = "#888888"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_LETTERS = 26  # of a name at most
_DASHES: tuple[list[int], ...] = ([1, 0], [9, 3], [9, 2, 2, 2], [5, 2], [12, 2, 2, 2, 2, 2])
_CONTROL_DASHES: tuple[list[int], ...] = ([1, 3], [4, 4], [6, 3, 1, 3], [2, 2])


@dataclass(frozen=True)
class Look:
    """The look of each explainer of a run.

    Attributes
    ----------
    names
        What charts call each explainer of the run, the controls last.
    colours, dashes, shapes
        Those of each explainer, in the same order. Controls are grey and dashed.
    """

    names: dict[str, str]
    colours: list[str]
    dashes: list[list[int]]
    shapes: list[str]

    @classmethod
    def of(cls, run: Run) -> Look:
        """Return the look of the explainers of a run."""
        controls = [name for name, entry in run.explainers.items() if is_control(name, entry)]
        own = [name for name in run.explainers if name not in controls]
        turns = [divmod(i, len(PALETTE)) for i in range(len(own))]
        grey = range(len(controls))
        return cls(
            _short([*own, *controls]),
            [PALETTE[i] for _, i in turns] + [GREY for _ in grey],
            [_DASHES[turn % len(_DASHES)] for turn, _ in turns]
            + [_CONTROL_DASHES[i % len(_CONTROL_DASHES)] for i in grey],
            [SHAPES[i % len(SHAPES)] for i in range(len(own))] + [SHAPES[i % len(SHAPES)] for i in grey],
        )

    def legend(self, width: int, **more: Any) -> Spec:
        """Return the legend of explainers above a chart that is ``width`` pixels wide."""
        longest = 7 * max(map(len, self.names.values())) + 40  # pixels, with the symbol
        columns = max(1, min(len(self.names), width // longest))
        about = {"title": None, "orient": "top", "columns": columns, "columnPadding": 16, "labelLimit": 0}
        return about | more

    def colour(self, legend: Spec | None = None) -> Spec:
        """Return the colours as an encoding of the field ``explainer``."""
        return self._as(self.colours, legend)

    def dash(self, legend: Spec | None = None) -> Spec:
        """Return the dashes as an encoding of the field ``explainer``."""
        return self._as(self.dashes, legend)

    def shape(self) -> Spec:
        """Return the shapes as an encoding of the field ``explainer``."""
        return self._as(self.shapes, None)

    def _as(self, looks: list[Any], legend: Spec | None) -> Spec:
        scale = {"domain": [*self.names.values()], "range": looks}
        return nominal("explainer", scale=scale, legend=legend)


def _short(names: list[str]) -> dict[str, str]:
    """Return names by themselves, without the middle of long ones as long as they stay distinct."""
    whole = {name: shown(name) for name in names}
    ends = _LETTERS // 2
    short = {
        name: told if len(told) <= _LETTERS else f"{told[:ends]}…{told[1 - ends :]}"
        for name, told in whole.items()
    }
    return short if len({*short.values()}) == len(names) else whole
