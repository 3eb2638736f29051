"""The curves of a run as a chart of the page and as a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from explainers.control_names import CONTROLS
from made import METRICS, NASTY, made_run, made_scores
from storage.run import Run
from tasks.page.charts.chart import Chart
from tasks.page.charts.curves import curves_chart, write_curves
from tasks.page.charts.looks import GREY, PALETTE, Look
from tasks.results.curve_bands import bands_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = made_run(
        tmp_path_factory.mktemp("made") / "run", {"gradcam": None, "ig:2": None, "noise": "random"}
    )
    made_scores(made)
    return made


@pytest.fixture(scope="module")
def chart(run: Run) -> Chart:
    return curves_chart(run)


def test_every_curve_has_a_panel_with_named_axes_and_all_explainers(run: Run, chart: Chart) -> None:
    panels = chart.spec["concat"]
    told = [(panel["title"]["text"], panel["title"]["subtitle"]) for panel in panels]
    assert told == [
        ("insertion", "higher is better"),
        ("deletion", "lower is better"),
        ("max_box_acc_v2", "IoU of at least 0.3, higher is better"),
        ("max_box_acc_v2", "IoU of at least 0.5, higher is better"),
        ("max_box_acc_v2", "IoU of at least 0.7, higher is better"),
        ("pxap", "higher is better"),
        (NASTY, "lower is better"),
    ]
    axes = [tuple(p["layer"][1]["encoding"][axis]["title"] for axis in "xy") for p in panels]
    assert axes[0] == ("share of pixels inserted", "probability of the class")
    assert axes[5] == ("recall (share of the object's pixels)", "precision")
    band = bands_of(run)["max_box_acc_v2"]["ig:2"][1]
    rows = [row for row in chart.spec["datasets"]["panel 3"] if row["explainer"] == "ig:2"]
    for key in ("x", "mean", "low", "high"):
        assert [row[key] for row in rows] == pytest.approx(getattr(band, key), rel=1e-4)


def test_controls_are_grey_and_dashed_also_under_a_label(chart: Chart) -> None:
    line = chart.spec["concat"][0]["layer"][1]["encoding"]
    assert line["color"]["scale"] == {"domain": ["gradcam", "ig:2", "noise"], "range": [*PALETTE[:2], GREY]}
    assert [dash == [1, 0] for dash in line["strokeDash"]["scale"]["range"]] == [True, True, False]


def test_the_picture_of_a_page_is_markup_without_colours_of_text_and_with_names_as_text(chart: Chart) -> None:
    root = ElementTree.fromstring(chart.svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", "Curves")
    assert root.get("viewBox")
    assert "width:100%" in str(root.get("style"))
    assert root.get("width") is None
    texts = [element for element in root.iter() if element.tag.endswith("text")]
    assert {element.get("fill") for element in texts} == {"currentColor"}
    names = [element.text for element in texts]
    assert (names.count(NASTY), names.count("ig:2")) == (1, 1)  # there is one legend
    assert "<b>" not in chart.svg
    assert not [e for e in root.iter() if {"id", "font-family"} & set(e.attrib)]


def test_the_same_run_gives_the_same_picture(run: Run, chart: Chart) -> None:
    assert curves_chart(run) == chart


def test_curves_png_is_black_on_white_and_as_wide_as_three_panels(run: Run, chart: Chart) -> None:
    write_curves(run)
    with Image.open(run.report / "curves.png") as picture:
        assert picture.format == "PNG"
        box = [float(each) for each in str(ElementTree.fromstring(chart.svg).get("viewBox")).split()]
        assert picture.size == pytest.approx((2 * box[2], 2 * box[3]), abs=4)
        assert 1500 < picture.width < 2000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(255, 255, 255), (30, 150, 225)} <= colours
    assert chart.png() == (run.report / "curves.png").read_bytes()


def test_long_curves_are_thinned_to_a_hundred_points_with_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("made.POINTS", {"insertion": 1001})
    run = made_run(tmp_path / "run", {"gradcam": None}, metrics={"insertion": METRICS["insertion"]})
    made_scores(run)
    chart = curves_chart(run)
    shares = [row["x"] for row in chart.spec["datasets"]["panel 0"]]
    assert len(shares) == 100
    assert (shares[0], shares[-1]) == (0, 1)
    assert "100 are drawn" in chart.caption


def test_long_names_lose_their_middle_unless_that_would_make_them_equal(tmp_path: Path) -> None:
    names = [
        "gradcam-with-a-layer-that-has-a-long-name-1",
        "gradcam-with-a-layer-that-has-a-long-name-2",
        "lime",
    ]
    look = Look.of(made_run(tmp_path / "run", dict.fromkeys(names)))
    assert [*look.names.values()] == ["gradcam-with-…-long-name-1", "gradcam-with-…-long-name-2", "lime"]
    names = ["gradcam-with-one-layer-of-a-long-name", "gradcam-with-two-layers-of-a-long-name"]
    look = Look.of(made_run(tmp_path / "other", dict.fromkeys(names)))
    assert [*look.names.values()] == names


def test_explainers_beyond_the_palette_differ_by_their_dashes(tmp_path: Path) -> None:
    look = Look.of(made_run(tmp_path / "run", dict.fromkeys([f"e{i}" for i in range(21)] + [*CONTROLS])))
    looks = set(zip(look.colours, map(tuple, look.dashes), strict=True))
    assert len(looks) == 25


def test_a_run_without_curves_has_a_sentence_and_no_picture(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", {"gradcam": None}, metrics={"sparseness": METRICS["sparseness"]})
    made_scores(run)
    chart = curves_chart(run)
    assert (chart.svg, chart.spec) == ("", {})
    assert "No metric" in chart.caption
    write_curves(run)
    assert not (run.report / "curves.png").exists()


def _luminance(colour: str) -> float:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("page", ["#ffffff", "#16181d"])
def test_every_colour_has_a_contrast_of_three_with_light_and_dark_pages(page: str) -> None:
    for colour in (*PALETTE, GREY):
        low, high = sorted(_luminance(each) + 0.05 for each in (colour, page))
        assert high / low >= 3, colour
