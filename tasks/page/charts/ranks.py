"""The critical-difference diagram: which explainers differ in their mean ranks over metrics."""

from __future__ import annotations

import altair as alt

from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, drawn
from tasks.page.charts.looks import Look
from tasks.results.rank_groups import LEVEL, RankGroups, Ranks, rank_groups

TITLE = "Mean ranks over metrics"
WIDTH = 460  # pixels from the best rank to the worst
LINE, GROUP = 17, 8  # pixels between two names, and between two bars


def ranks_chart(run: Run, ranks: Ranks) -> Chart:
    """Draw the mean ranks of all explainers, and bars over those that do not differ."""
    whole = ranks.complete()
    found = rank_groups(whole)
    if found is None:
        return Chart(
            TITLE,
            "Mean ranks are not compared: that takes 3 explainers, and 2 ranked columns in which all of them "
            f"have a score, and here are {len(whole.explainers)} and {len(whole.columns)}.",
        )
    look, left_out = Look.of(run), len(ranks.columns) - len(whole.columns)
    return drawn(TITLE, _caption(found, left_out), _diagram(found, look), _rows(found, look))


def _caption(found: RankGroups, left_out: int) -> str:
    p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    test = f"Friedman's test over {found.columns} ranked columns gives {p_value}"
    if found.p_value < LEVEL:
        told = (
            f"{test}: not all explainers rank alike. A bar joins explainers whose mean ranks differ by no "
            f"more than the critical difference of {found.difference:.2f} (Nemenyi's test, 5 %): the columns "
            "do not tell them apart."
        )
    else:
        told = f"{test}: the columns do not tell the explainers apart, and a bar joins all of them."
    without = f" Columns without a score of every explainer are left out: {left_out}." if left_out else ""
    return (
        f"The mean rank of each explainer over the ranked columns; 1 is the best. {told} Columns are "
        "measured on the same inputs, and some are alike, so the test describes the run more than it proves "
        f"a difference.{without}"
    )


def _rows(found: RankGroups, look: Look) -> dict[str, Rows]:
    """Return the data: the stems and names of explainers, and the bars of groups."""
    many = len(found.explainers)
    half = (many + 1) // 2  # names of the better half stand on the left
    top = 14 + GROUP * len(found.groups)
    pixel = (many - 1) / WIDTH
    names = []
    told = [look.names[name] for name in found.explainers]
    for i, (name, mean) in enumerate(zip(told, found.mean.tolist(), strict=True)):
        left = i < half
        label = f"{name}  {mean:.2f}" if left else f"{mean:.2f}  {name}"
        names.append(
            {"explainer": name, "rank": round(mean, 4), "left": left, "label": label, "top": 0}
            | {"depth": top + LINE * (i if left else many - 1 - i)}
            | {"edge": round(1 - 4 * pixel if left else many + 4 * pixel, 4)}
        )
    bars = [
        {"from": float(found.mean[first]), "to": float(found.mean[last]), "depth": 10 + GROUP * i}
        for i, (first, last) in enumerate(found.groups)
    ]
    return {"names": names, "bars": bars}


def _diagram(found: RankGroups, look: Look) -> alt.LayerChart:
    many = len(found.explainers)
    height = 14 + GROUP * len(found.groups) + LINE * ((many + 1) // 2)
    scale = alt.Scale(domain=[1, many], nice=False, zero=False)
    axis = alt.Axis(orient="top", title="mean rank", grid=False, tickMinStep=1, format="d", domainOpacity=1)
    x = alt.X("rank:Q", scale=scale, axis=axis)
    downwards = alt.Scale(domain=[height, 0], nice=False)
    down = alt.Y("depth:Q", scale=downwards, axis=None)
    names = alt.Chart(alt.NamedData("names"))
    layers = [
        names.mark_rule(strokeWidth=1.4).encode(
            x, alt.Y("top:Q", scale=downwards, axis=None), alt.Y2("depth:Q"), look.colour()
        ),
        names.mark_rule(strokeWidth=1.4).encode(x, down, look.colour(), x2=alt.X2("edge:Q")),
    ]
    for left in (True, False):
        side = names.transform_filter(alt.FieldEqualPredicate(field="left", equal=left))
        text = side.mark_text(
            align="right" if left else "left", dx=-4 if left else 4, baseline="middle"
        ).encode(alt.X("edge:Q", scale=scale), down, alt.Text("label:N"))
        layers.append(text)
    bars = alt.Chart(alt.NamedData("bars")).mark_rule(strokeWidth=4, strokeCap="round")
    layers.append(bars.encode(alt.X("from:Q", scale=scale), down, x2=alt.X2("to:Q")))
    return alt.layer(*layers, width=WIDTH, height=height)
