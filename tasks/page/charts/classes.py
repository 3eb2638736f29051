"""The scores of each explainer by class, beside the best control."""

from __future__ import annotations

import numpy as np

from explainers.models.modality import MODALITIES
from storage.characters import shown
from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, Spec, drawn, nominal, quantitative
from tasks.page.charts.curves import WORDS
from tasks.page.charts.looks import GREY, Look
from tasks.results.class_scores import ClassScores, class_scores
from tasks.results.headline import headline
from tasks.results.leaderboard import is_control
from tasks.results.statistics import Floats

TITLE = "Scores by class"
ACROSS, WIDTH, LINE = 4, 165, 14  # panels side by side, pixels of a panel, and of a class
_LONGEST = 24  # letters of a class's name


def classes_chart(run: Run) -> Chart:
    """Draw the first headline column that has a value per image, class by class, one panel an explainer."""
    column = next((name for name in headline(run.manifest) if run.columns[name].pooled is None), None)
    if column is None:
        return Chart(TITLE, "No headline metric of this run has a value per image, and so none by class.")
    found = class_scores(run, column)
    if len(found.classes) < 2:
        return Chart(TITLE, "Fewer than two classes are explained, so there is nothing to compare by class.")
    control = np.array([is_control(name, entry) for name, entry in run.explainers.items()])
    controlled = bool(control.any() and not control.all())
    own = ~control if controlled else np.ones_like(control)
    better = str(run.columns[column].better)
    sign = 1 if better == "higher" else -1
    order = np.argsort(-sign * _mean(found.mean[own]), kind="stable")
    labels = [_label(found, c) for c in order]
    best = sign * _best(sign * found.mean[control])
    look = Look.of(run)
    rows: Rows = []
    for e in np.flatnonzero(own):
        for c, label in zip(order, labels, strict=True):
            numbers = {"mean": found.mean[e, c], "low": found.low[e, c], "high": found.high[e, c]}
            numbers["control"] = best[c] if controlled else np.nan
            row = {"explainer": look.names[found.explainers[e]], "class": label}
            rows.append(row | {k: float(f"{v:.5g}") for k, v in numbers.items() if np.isfinite(v)})
    caption = _caption(run, found, column, better, controlled)
    return drawn(TITLE, caption, _panels(column, labels, look), {"classes": rows})


def _mean(values: Floats) -> Floats:
    known = np.isfinite(values)
    mean: Floats = np.where(known, values, 0).sum(0) / known.sum(0).clip(min=1)
    return mean


def _best(values: Floats) -> Floats:
    """Return the highest value of each column of (E, C), NaN where there is none."""
    best = np.where(np.isfinite(values), values, -np.inf).max(0, initial=-np.inf)
    return np.where(np.isfinite(best), best, np.nan)


def _label(found: ClassScores, place: int) -> str:
    number, name = found.classes[place], found.names[place]
    told = str(number) if name is None else f"{number} {shown(name)}"
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 1]}…"


def _caption(run: Run, found: ClassScores, column: str, better: str, controlled: bool) -> str:
    plural = MODALITIES[run.modality].plural
    which = f"each of the {len(found.classes)} explained classes"
    if found.there > len(found.classes):
        which = f"the {len(found.classes)} of {found.there} explained classes that have most {plural}"
    ticks = " The grey stroke is the best control in that class." if controlled else ""
    return (
        f"The mean of {shown(column)} ({WORDS[better]}) over the {plural} of {which}, with its 95 % interval "
        f"(Student's t).{ticks} The class that is explained best on average comes first."
    )


def _panels(column: str, labels: list[str], look: Look) -> Spec:
    about = {"scale": {"zero": False}, "axis": {"tickCount": 4, "titleLimit": WIDTH}, "title": shown(column)}
    classes = nominal("class", sort=labels, axis={"title": None, "labelLimit": 150, "grid": True})
    control = {
        "mark": {"type": "tick", "color": GREY, "opacity": 1, "thickness": 2, "size": LINE - 3},
        "encoding": {"x": quantitative("control", **about), "y": classes},
    }
    interval = {
        "mark": {"type": "rule", "strokeWidth": 1.5},
        "encoding": {
            "x": quantitative("low", **about),
            "x2": {"field": "high"},
            "y": classes,
            "color": look.colour(),
        },
    }
    mean = {
        "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
        "encoding": {
            "x": quantitative("mean", **about),
            "y": classes,
            "color": look.colour(),
            "shape": look.shape(),
        },
    }
    header = {"title": None, "header": {"labelLimit": 0}}
    return {
        "data": {"name": "classes"},
        "facet": nominal("explainer", sort=[*look.names.values()], **header),
        "columns": ACROSS,
        "spacing": 14,
        "spec": {"width": WIDTH, "height": {"step": LINE}, "layer": [control, interval, mean]},
    }
