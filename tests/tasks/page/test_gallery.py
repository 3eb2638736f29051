"""The gallery shows what a run holds: its maps, scores, boxes and details; no text from data is markup."""

import re
import shutil
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs import completed, model, prepared, tiny_job
from storage.maps import read, read_rows
from storage.query import query
from storage.records import Step, drop_record, write_failure
from storage.run import Run
from storage.samples import read_samples
from tasks.metrics.preparation import prepare
from tasks.page.gallery import gallery_of
from tasks.page.picture_data import INFERNO, LEVELS, inline
from tasks.page.rendering import inline as static
from tasks.page.rendering import render
from tasks.page.sample import Sample, samples_of
from tasks.page.shown_maps import ShownMap
from tasks.page.stored_maps import stored_maps

NAME = "<b>&amp; '🦉'"  # a file's name has no slash
HOSTILE = "<script>alert(1)</script> \"'& 🦉"


def page_of(run: Run, folder: Path) -> Path:
    """A page that holds the gallery alone."""
    (folder / "page.html").write_text(
        f'<!DOCTYPE html><html lang="en"><title>gallery</title><style>{static(".css")}</style>'
        f"<main>{render('gallery.html', gallery=gallery_of(run))}</main><script>{static('.js')}</script>",
        "utf-8",
    )
    return folder / "page.html"


def opened(picture: str) -> Image.Image:
    """An inline picture."""
    return Image.open(BytesIO(b64decode(picture.partition(",")[2])))


def levels_of(picture: str) -> np.ndarray:
    """The levels in a map's inline picture."""
    pixels = np.asarray(opened(picture).convert("RGB"))
    known = {tuple(colour): level / (LEVELS - 1) for level, colour in enumerate(INFERNO[:LEVELS].tolist())}
    return np.array([[known[tuple(pixel)] for pixel in row] for row in pixels.tolist()])


def one(run: Run, row: int) -> Sample:
    (sample,) = samples_of(run, [row], inline)
    return sample


def test_each_map_is_drawn_as_the_metrics_see_it_on_its_own_grid(finished: Run) -> None:
    for row in (0, 17, 39):
        (target,) = one(finished, row).targets
        for name, shown in zip(finished.explainers, target.maps, strict=True):
            raw = torch.from_numpy(read(finished.saliency(name) / "maps", row, row + 1))
            wanted = prepare(raw, tuple(raw.shape[1:]))[0][0].numpy()
            np.testing.assert_allclose(
                levels_of(shown.picture), wanted, atol=0.51 / (LEVELS - 1), err_msg=name
            )
            assert shown.by.name == name


def test_on_one_scale_levels_are_the_stored_values_over_the_largest_of_the_sample(finished: Run) -> None:
    (target,) = one(finished, 3).targets
    raw = {name: read(finished.saliency(name) / "maps", 3, 4)[0].clip(0) for name in finished.explainers}
    highest = max(values.max() for values in raw.values())
    for shown, values in zip(target.maps, raw.values(), strict=True):
        found = shown.slope * levels_of(shown.picture) + shown.shift
        np.testing.assert_allclose(found, values / highest, atol=0.51 / (LEVELS - 1))


def test_a_finer_map_is_shown_as_means_of_cells_stretched_again(finished: Run) -> None:
    rows = [2, 30]
    raw = read_rows(finished.saliency("random") / "maps", rows)
    means = raw.reshape(2, 16, 4, 16, 4).mean((2, 4))
    for shown, values, wanted in zip(stored_maps(finished, "random", rows, 16), raw, means, strict=True):
        assert shown.levels is not None
        assert (shown.levels.min(), shown.levels.max()) == (0, 1)
        assert (shown.low, shown.high) == (values.min(), values.max())
        found = shown.levels * (shown.top - shown.bottom) + shown.bottom
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    (flat,) = stored_maps(finished, "all_ones", rows[:1], 16)
    assert flat.levels is not None
    assert (flat.levels.tolist(), flat.bottom, flat.top) == ([[1]], 1, 1)


def test_a_score_stands_with_the_share_of_maps_that_score_worse(finished: Run) -> None:
    (target,) = one(finished, 5).targets
    rows = query(finished.root, "SELECT * FROM scores").to_pylist()
    name = query(finished.root, "SELECT sample_id FROM samples").to_pylist()[5]["sample_id"]
    assert {row.column for row in target.scores} == {
        "insertion",
        "pointing_game",
        "pointing_game_center",
        "sparseness",
    }
    for line in target.scores:
        for explainer, score in zip(finished.explainers, line.scores, strict=True):
            own_rows = [r for r in rows if (r["explainer"], r["metric"]) == (explainer, line.column)]
            values = [r["value"] for r in own_rows if r["value"] is not None]
            own = next(r["value"] for r in own_rows if r["sample_id"] == name)
            if own is None:
                assert (score.value, score.place) == ("", None)
                continue
            worse = sum(value < own for value in values) + sum(value == own for value in values) / 2
            assert float(score.value) == pytest.approx(own, rel=0.05, abs=5e-4)
            assert score.place == pytest.approx(100 * worse / len(values), abs=0.5 + 1e-9)


def test_lower_scores_are_better_where_the_column_says_so() -> None:
    from tasks.page.sample_scores import placed

    values = np.array([0.1, 0.2, 0.2, 0.9, np.nan])
    assert [score.place for score in placed(values, [0, 1, 3, 4], "lower")] == [88, 50, 12, None]
    assert [score.place for score in placed(values, [0, 1, 3], "higher")] == [12, 50, 88]


def test_a_curve_passes_through_its_stored_points(finished: Run) -> None:
    (target,) = one(finished, 20).targets
    (panel,) = target.curves
    assert (panel.column, panel.low, panel.high) == ("insertion", "0", "1")
    rows = query(finished.root, "SELECT * FROM scores WHERE metric = 'insertion'").to_pylist()
    name = query(finished.root, "SELECT sample_id FROM samples").to_pylist()[20]["sample_id"]
    for line in panel.lines:
        explainer = list(finished.explainers)[line.explainer]
        (stored,) = [r["curve"] for r in rows if (r["explainer"], r["sample_id"]) == (explainer, name)]
        drawn = [tuple(map(float, point.split(","))) for point in line.points.split()]
        assert [x for x, _ in drawn] == [round(200 * i / (len(stored) - 1)) for i in range(len(stored))]
        assert [1 - y / 100 for _, y in drawn] == pytest.approx(stored, abs=1e-3)


def test_ddcams_units_are_those_that_it_kept(finished: Run) -> None:
    for row in (0, 8):
        told = next(each for each in one(finished, row).targets[0].details if each.explainer == "ddcam")
        mask = read(finished.saliency("ddcam") / "details" / "unit_mask", row, row + 1)[0]
        assert told.kept is not None
        assert told.kept.numbers == ", ".join(str(unit) for unit in np.flatnonzero(mask))
        assert (told.kept.kept, told.kept.units) == (mask.sum(), len(mask))
        assert told.kept.certified


def test_boxes_and_masks_are_those_of_the_sample_and_can_be_hidden(
    tmp_path: Path, look: Callable[..., Any]
) -> None:
    metrics = [{"name": "pixel_precision", "bins": 4}]
    digits = {"kind": "digits", "limit": 3}
    run = completed(
        tiny_job(tmp_path / "run", dataset=digits, explainers=[{"name": "gradcam"}], metrics=metrics)
    )
    for row, sample in enumerate(read_samples(run.root)):
        (target,) = one(run, row).targets
        ((left, top, right, bottom),) = sample["boxes"]
        assert target.boxes == [(left, top, right - left, bottom - top)]
        mask = np.asarray(opened(target.mask).convert("RGBA"))[..., 3] > 0
        np.testing.assert_array_equal(mask, read(run.masks, row, row + 1)[0] > 0)
        assert mask.any()
    with look(page_of(run, tmp_path)) as tab:
        picture = tab.locator(".picture").first
        before = picture.screenshot()
        for name in ("boxes", "masks"):
            switch = tab.get_by_label(name)
            there = switch.is_checked()
            assert there is (name == "boxes")
            switch.set_checked(not there)
            assert picture.screenshot() != before, name
            switch.set_checked(there)
            assert picture.screenshot() == before, name


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Images whose names and classes are markup. One is damaged; the maps of Odd go wrong in every way."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = ["file,label,xmin,ymin,xmax,ymax"]
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    noise[:, 0, 0, 0] = range(6)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{i} {NAME}.png")
        lines.append(f'"{i} {NAME}.png",{i},4,8,40,48')
    (folder / "broken <b>.png").write_bytes(b"no image")
    lines.append("broken <b>.png,1,1,1,9,9")
    (folder / "list.csv").write_text("\n".join(lines), "utf-8")
    (folder / "names.txt").write_text("\n".join(f"{i} {HOSTILE}" for i in range(8)), "utf-8")
    return completed(
        tiny_job(
            folder / "run",
            dataset={"kind": "csv", "path": str(folder / "list.csv"), "numbering": "model"},
            model=model("gap") | {"class_names": str(folder / "names.txt")},
            explainers=[{"name": "moxi", "grid": 3, "full_order": True}, {"name": "page_toys:Odd"}],
            metrics=[{"name": "insertion", "steps": 2}],
            controls=False,
            batch={"shard": 3},
        )
    )


def shown_of(run: Run, row: int, explainer: str) -> ShownMap:
    (target,) = one(run, row).targets
    return target.maps[list(run.explainers).index(explainer)]


def test_a_map_that_is_none_says_why_and_a_flat_one_what_it_is(hostile: Run) -> None:
    found = [shown_of(hostile, row, "page_toys:Odd") for row in range(6)]
    assert [(each.there, bool(each.picture)) for each in found] == [(i not in {3, 4},) * 2 for i in range(6)]
    assert [each.told for each in found] == [
        "",
        "zero everywhere",
        "the same everywhere",
        "values that are no finite numbers",
        "the method cannot be applied to this input",
        "no positive value",
    ]
    assert found[0].range == "0.000 to 2.000"
    np.testing.assert_allclose(levels_of(found[0].picture), [[0, 0.5], [1, 0]], atol=0.51 / (LEVELS - 1))
    assert levels_of(found[1].picture).max() == 0
    assert levels_of(found[2].picture).min() == 1


def test_a_shard_that_was_not_explained_says_so_and_one_that_failed_says_why(
    hostile: Run, tmp_path: Path
) -> None:
    shutil.copytree(hostile.root, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    for shard, folder in ((0, "moxi"), (1, "moxi")):
        drop_record(run.root, Step("saliency", shard, folder))
        (
            run.root / run.layout.arrays["saliency.zarr/moxi/maps"].shard("saliency.zarr/moxi/maps", shard)
        ).unlink()
    write_failure(run.root, Step("saliency", 1, "moxi"), "out of <memory>", "traceback", 2)
    assert shown_of(run, 0, "moxi").told == "not computed yet"
    assert shown_of(run, 3, "moxi").told == "failed: out of <memory>"
    gallery = gallery_of(run)
    assert "no map: failed: out of &lt;memory&gt;" in render("gallery.html", gallery=gallery)


def test_a_run_without_any_prediction_has_an_empty_gallery(tmp_path: Path) -> None:
    gallery = gallery_of(prepared(tiny_job(tmp_path / "run")))
    assert (gallery.known, gallery.chosen) == (0, [])
    assert "No sample has passed the model yet" in render("gallery.html", gallery=gallery)


def test_a_sample_that_could_not_be_read_shows_its_error(hostile: Run) -> None:
    sample = one(hostile, 6)
    assert sample.error
    assert not sample.picture
    assert not sample.targets
    chosen = {each.sample.name: each.kinds for each in gallery_of(hostile).chosen}
    assert "failed" in chosen["broken <b>.png"]


def test_moxis_cells_are_uncovered_in_its_order_with_the_confidence(hostile: Run) -> None:
    (target,) = one(hostile, 0).targets
    (cells,) = next(each for each in target.details if each.explainer == "moxi").uncovered
    folder = hostile.saliency("moxi") / "details"
    order, reward = (read(folder / f"insertion_{key}", 0, 1)[0] for key in ("order", "reward"))
    steps = int(read(folder / "insertion_steps", 0, 1)[0])
    assert cells.order == ",".join(map(str, order))
    assert sorted(order) == list(range(9))
    odds = np.exp(reward.astype(float))
    assert [float(p) for p in cells.confidence.split(",")] == pytest.approx(odds / (1 + odds), rel=0.01)
    assert (cells.start, cells.count) == (steps, 9)
    assert cells.found == f"The first {steps} of 9 cells suffice for the prediction."
    absent = {(int(x), int(y)) for x, y in re.findall(r"M(\d) (\d)h1v1h-1z", cells.cover)}
    assert absent == {(cell % 3, cell // 3) for cell in order[cells.start :]}


def test_names_are_text_and_nothing_else(hostile: Run, tmp_path: Path, look: Callable[..., Any]) -> None:
    with look(page_of(hostile, tmp_path)) as tab:
        titles = tab.locator("article h3").all_text_contents()
        assert f"0 {NAME}.png" in titles
        assert any(HOSTILE in title for title in tab.locator("article h4").all_text_contents())
        assert tab.locator("article script, article h3 *, article h4 *").count() == 0


def test_plain_keys_lead_from_sample_to_sample_and_leave_sliders_alone(
    hostile: Run, tmp_path: Path, look: Callable[..., Any]
) -> None:
    with look(page_of(hostile, tmp_path)) as tab:
        ids = [each.get_attribute("id") for each in tab.locator("article.sample").all()]
        for key, place in (("j", 0), ("ArrowRight", 1), ("j", 2), ("k", 1), ("ArrowLeft", 0)):
            tab.keyboard.press(key)
            assert tab.evaluate("document.activeElement.id") == ids[place], (key, place)
        slider = tab.get_by_label("opacity")
        slider.focus()
        before = float(slider.input_value())
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("j")
        assert float(slider.input_value()) == before + 1
        assert tab.evaluate("document.activeElement.name") == "opacity"


def test_switches_change_what_is_shown(hostile: Run, tmp_path: Path, look: Callable[..., Any]) -> None:
    with look(page_of(hostile, tmp_path)) as tab:

        def style(selector: str, key: str) -> str:
            return tab.locator(selector).first.evaluate("(e, key) => getComputedStyle(e)[key]", key)

        image = ".map .picture img"
        assert style(image, "opacity") == "0.6"
        tab.get_by_label("opacity").fill("20")
        assert style(image, "opacity") == "0.2"
        tab.get_by_label("show cells").check()
        assert style(image, "imageRendering") == "pixelated"
        tab.get_by_label("map alone").check()
        assert style(".map .picture", "backgroundImage") == "none"
        assert style(image, "opacity") == "1"

        own = tab.locator(image).first.get_attribute("src")
        tab.get_by_label("same scale").check()
        tab.wait_for_function("own => document.querySelector('.map .picture img').src !== own", arg=own)
        tab.get_by_label("same scale").uncheck()
        assert tab.locator(image).first.get_attribute("src") == own

        everything = tab.locator("article").count()
        tab.get_by_label("failed").check()
        assert 0 < tab.locator("article:visible").count() < everything
        assert tab.locator("article:visible").count() == tab.locator("article.is-failed").count()


def test_the_slider_uncovers_cells_by_the_keyboard(
    hostile: Run, tmp_path: Path, look: Callable[..., Any]
) -> None:
    sample = next(each.sample for each in gallery_of(hostile).chosen if each.sample.targets)
    told = next(each for each in sample.targets[0].details if each.explainer == "moxi").uncovered[0]
    with look(page_of(hostile, tmp_path)) as tab:
        article = tab.locator(f"#{sample.key}")
        article.locator("summary").first.focus()
        tab.keyboard.press("Enter")
        slider = article.locator(".uncovering input")
        slider.focus()
        path = article.locator(".uncovering .picture path")
        assert path.get_attribute("d") == told.cover
        tab.keyboard.press("Home")
        assert path.get_attribute("d").count("M") == 8
        assert (
            article.locator("output").text_content() == f"1 cell: confidence {told.confidence.split(',')[0]}"
        )
        tab.keyboard.press("End")
        assert path.get_attribute("d") == ""


def test_without_scripts_everything_is_there(hostile: Run, tmp_path: Path, look: Callable[..., Any]) -> None:
    with look(page_of(hostile, tmp_path), java_script_enabled=False) as tab:
        assert not tab.get_by_label("opacity").is_visible()
        assert tab.locator("article:visible").count() == len(gallery_of(hostile).chosen)
        tab.get_by_label("wrong prediction").check()
        assert tab.locator("article:visible").count() == tab.locator("article.is-wrong").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_gallery_has_no_serious_fault_of_access(
    hostile: Run, tmp_path: Path, look: Callable[..., Any], scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with look(page_of(hostile, tmp_path), color_scheme=scheme) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach(each => (each.open = true))")
        found = Axe().run(tab).response["violations"]
    told = [
        (fault["id"], fault["nodes"][0]["html"])
        for fault in found
        if fault["impact"] in {"serious", "critical"}
    ]
    assert told == []
