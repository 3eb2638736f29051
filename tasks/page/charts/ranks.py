"""The critical-difference diagram: which explainers differ in their mean ranks over metrics."""

from __future__ import annotations

from storage.run import Run
from tasks.page.charts.chart import Chart, Rows, Spec, drawn, nominal, quantitative
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


def _diagram(found: RankGroups, look: Look) -> Spec:
    many = len(found.explainers)
    height = 14 + GROUP * len(found.groups) + LINE * ((many + 1) // 2)
    scale = {"domain": [1, many], "nice": False, "zero": False}
    axis = {"orient": "top", "title": "mean rank", "grid": False, "tickMinStep": 1, "format": "d"}
    x = quantitative("rank", scale=scale, axis=axis | {"domainOpacity": 1})
    below = {"scale": {"domain": [height, 0], "nice": False}, "axis": None}
    down, edge = quantitative("depth", **below), quantitative("edge", scale=scale)
    names, stem = {"data": {"name": "names"}}, {"type": "rule", "strokeWidth": 1.4}
    stems: list[Spec] = [
        {"x": x, "y": quantitative("top", **below), "y2": {"field": "depth"}, "color": look.colour()},
        {"x": x, "x2": {"field": "edge"}, "y": down, "color": look.colour()},
    ]
    layers: list[Spec] = [names | {"mark": stem, "encoding": each} for each in stems]
    for left in (True, False):
        align = {"align": "right", "dx": -4} if left else {"align": "left", "dx": 4}
        layers.append(
            names
            | {"transform": [{"filter": {"field": "left", "equal": left}}]}
            | {"mark": {"type": "text", "baseline": "middle", **align}}
            | {"encoding": {"x": edge, "y": down, "text": nominal("label")}}
        )
    bar = {"x": quantitative("from", scale=scale), "x2": {"field": "to"}, "y": down}
    mark = {"type": "rule", "strokeWidth": 4, "strokeCap": "round"}
    layers.append({"data": {"name": "bars"}, "mark": mark, "encoding": bar})
    return {"width": WIDTH, "height": height, "layer": layers}
