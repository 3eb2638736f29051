"""All charts of a run with made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from made import METRICS, NASTY, made_maps, made_run, made_samples, made_scores
from storage.layout import score_file
from storage.parquet import read_table, write_table
from storage.records import Step
from storage.run import Run
from tasks.page.charts.all import charts_of
from tasks.page.charts.chart import Chart
from tasks.page.charts.cost import HEIGHT, Point, places
from tasks.results.class_scores import class_scores
from tasks.results.map_agreement import map_agreement
from tasks.results.rank_groups import Ranks, rank_agreement, rank_groups
from tasks.results.summary import summarise

EXPLAINERS = {"gradcam": None, "lime": None, "ig-2": None, "random": None, "noise": "random"}
TITLES = [
    "Curves",
    "Mean ranks over metrics",
    "Faithfulness against cost",
    "Agreement of explainers",
    "Agreement of metrics",
    "Scores by class",
]


def finished(run: Run, times: dict[str, float | None]) -> Run:
    """Write everything that charts are made of."""
    made_scores(run)
    made_maps(run)
    made_samples(run, names={0: NASTY, 1: "one"})
    summarise(run)
    write_table(
        pa.table({"explainer": list(times), "milliseconds": pa.array([*times.values()], pa.float64())}),
        run.costs,
    )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = made_run(tmp_path_factory.mktemp("made") / "run", EXPLAINERS, images=24)
    return finished(made, {"gradcam": 0.5, "lime": 200.0, "ig-2": 30.0, "random": 0.04, "noise": None})


@pytest.fixture(scope="module")
def charts(run: Run) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts_of(run)}


def rows_of(chart: Chart, data: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = chart.spec["datasets"][data]
    return rows


def test_every_chart_is_markup_of_a_picture_with_a_name_and_names_as_text(
    charts: dict[str, Chart],
) -> None:
    assert list(charts) == TITLES
    for title, chart in charts.items():
        root = ElementTree.fromstring(chart.svg)
        assert (root.get("role"), root.get("aria-label")) == ("img", title)
        assert not [element for element in root.iter() if "id" in element.attrib]  # pages have several charts
        assert {e.get("fill") for e in root.iter() if e.tag.endswith("text")} == {"currentColor"}
        assert "<b>" not in chart.svg
        assert json.loads(json.dumps(chart.spec)) == chart.spec
    for title in ("Curves", "Agreement of metrics"):
        assert NASTY in [element.text for element in ElementTree.fromstring(charts[title].svg).iter()]


def test_the_diagram_has_the_mean_ranks_and_the_groups(run: Run, charts: dict[str, Chart]) -> None:
    found = rank_groups(Ranks.of(read_table(run.summary)).complete())
    assert found is not None
    chart = charts["Mean ranks over metrics"]
    names = rows_of(chart, "names")
    assert [row["explainer"] for row in names] == found.explainers
    assert [row["rank"] for row in names] == pytest.approx(found.mean.tolist(), abs=1e-4)
    assert [row["left"] for row in names] == [True, True, True, False, False]
    bars = [(row["from"], row["to"]) for row in rows_of(chart, "bars")]
    assert bars == [(found.mean[first], found.mean[last]) for first, last in found.groups]
    assert f"over {found.columns} ranked columns" in chart.caption
    assert (f"{found.difference:.2f} (Nemenyi" in chart.caption) == (found.p_value < 0.05)


def test_cost_is_drawn_for_explainers_with_a_time_and_a_score(run: Run, charts: dict[str, Chart]) -> None:
    chart = charts["Faithfulness against cost"]
    means = {
        row["explainer"]: row["mean"]
        for row in read_table(run.summary).to_pylist()
        if row["metric"] == "insertion"
    }
    points = {row["explainer"]: (row["time"], row["mean"]) for row in rows_of(chart, "points")}
    times = {"gradcam": 0.5, "lime": 200.0, "ig-2": 30.0, "random": 0.04}
    assert points == {name: (time, means[name]) for name, time in times.items()}
    assert chart.caption.endswith("Without a score or a measured time: noise.")
    # Names lie at the right of their points, where there is room.
    assert all(
        name["name time"] > point["time"] and name["name mean"] == pytest.approx(point["mean"], rel=1e-3)
        for name, point in zip(rows_of(chart, "names"), rows_of(chart, "points"), strict=True)
    )


def test_names_of_points_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    names = [f"explainer {i}" for i in range(25)]
    at = rng.normal((300, 100), 60, (25, 2)).tolist()
    points = [Point(x, y, y - 20, y + 20) for x, y in at]
    found = places(points, names)
    boxes = [(p.x, p.y, p.x + 6 * len(name), p.y + 12) for p, name in zip(found, names, strict=True)]
    overlaps = sum(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )
    assert overlaps <= 1
    assert all(0 <= place.y <= HEIGHT for place in found)
    at_the_edge = places([Point(20, 100, 90, 110), Point(24, 100, 90, 110)], ["one name", "another name"])
    assert [place.x >= 0 for place in at_the_edge] == [True, True]
    assert abs(at_the_edge[0].y - at_the_edge[1].y) > 10


def test_the_matrices_hold_the_agreements_without_the_diagonal(run: Run, charts: dict[str, Chart]) -> None:
    ranks = Ranks.of(read_table(run.summary))
    agreement = map_agreement(run)
    for title, names, values in (
        ("Agreement of explainers", agreement.explainers, agreement.correlation),
        ("Agreement of metrics", ranks.columns, rank_agreement(ranks)),
    ):
        cells = {(row["row"], row["column"]): row["value"] for row in rows_of(charts[title], "cells")}
        assert len(cells) == len(names) * (len(names) - 1)
        for (one, other), value in cells.items():
            assert value == pytest.approx(values[names.index(one), names.index(other)], abs=6e-4)


def test_classes_are_sorted_and_controls_become_the_best_of_them(run: Run, charts: dict[str, Chart]) -> None:
    found = class_scores(run, "insertion")
    rows = rows_of(charts["Scores by class"], "classes")
    assert {row["explainer"] for row in rows} == {"gradcam", "lime", "ig-2"}
    order = np.argsort(-found.mean[:3].mean(0))
    names = {0: f"0 {NASTY}", 1: "1 one", 2: "2 label 2"}
    assert [row["class"] for row in rows[:3]] == [names[found.classes[c]] for c in order]
    for row in rows:
        e = found.explainers.index(row["explainer"])
        c = next(c for c, number in enumerate(found.classes) if names[number] == row["class"])
        told = (row["mean"], row["low"], row["high"], row["control"])
        expected = (found.mean[e, c], found.low[e, c], found.high[e, c], found.mean[3:, c].max())
        assert told == pytest.approx(expected, rel=1e-4)


def test_the_same_run_gives_the_same_charts(run: Run, charts: dict[str, Chart]) -> None:
    assert charts_of(run) == list(charts.values())


def test_an_explainer_that_always_failed_is_named_and_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", dict.fromkeys(["gradcam", "lime", "ig", "broken"]), images=8)
    finished(run, {"gradcam": 1.0, "lime": 2.0, "ig": 3.0, "broken": None})
    for shard in range(run.shards):
        (run.root / Step("saliency", shard, "broken").path).unlink()
        (run.root / score_file("broken", shard)).unlink()
    summarise(run)
    charts = {chart.title: chart for chart in charts_of(run)}
    assert all(chart.svg for chart in charts.values())
    assert charts["Agreement of explainers"].caption.endswith("maps are flat or missing: broken.")
    assert charts["Faithfulness against cost"].caption.endswith("a measured time: broken.")
    names = [row["explainer"] for row in rows_of(charts["Mean ranks over metrics"], "names")]
    assert sorted(names) == ["gradcam", "ig", "lime"]


def test_what_cannot_be_drawn_is_a_sentence(tmp_path: Path) -> None:
    metrics = {"sparseness": METRICS["sparseness"]}
    run = finished(made_run(tmp_path / "run", {"gradcam": None}, metrics=metrics), {"gradcam": 1.0})
    made_samples(run, classes=[3] * 10)
    charts = charts_of(run)
    assert [chart.title for chart in charts] == TITLES
    assert {(chart.svg, len(chart.spec)) for chart in charts} == {("", 0)}
    for chart in charts:
        assert chart.caption.count(". ") == 0
        assert chart.caption.endswith(".")
