"""The tables of a run against its tidy scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from explainers.control_names import CONTROLS
from runs import explained, prepared, tiny_job
from storage.datasets import digits
from storage.maps import read
from storage.query import query
from storage.run import Run
from tasks.results.summary import mean_curves, summarise
from tasks.scores import scores


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six images in two shards; the third is no image, the second has no box and no mask."""
    folder = tmp_path_factory.mktemp("scored")
    lines = ["file,label,xmin,ymin,xmax,ymax,mask"]
    for index in range(6):
        sample = digits.sample("test", index)
        Image.fromarray(sample.image).save(folder / f"{index}.png")
        Image.fromarray(sample.mask).save(folder / f"mask{index}.png")
        box = ",".join(map(str, sample.box)) if index != 1 else ",,,"
        lines.append(f"{index}.png,{sample.label},{box},{f'mask{index}.png' if index != 1 else ''}")
    (folder / "2.png").write_bytes(b"no image")
    (folder / "listing.csv").write_text("\n".join(lines))
    job = tiny_job(
        folder / "run",
        dataset={"kind": "csv", "path": str(folder / "listing.csv")},
        explainers=[{"name": "gradcam"}],
        metrics=[{"name": "insertion"}, {"name": "energy_pointing_game"}],
        batch={"shard": 3},
    )
    run = explained(prepared(job))
    for shard in range(run.shards):
        for name in run.explainers:
            scores.fn(str(run.root), shard, name)
    summarise(run)
    return run


def test_masks_go_through_the_geometry_of_their_images(scored: Run) -> None:
    masks = read(scored.masks, 0, 6)
    for index, mask in enumerate(masks):
        expected = digits.sample("test", index).mask
        there = index not in {1, 2}
        np.testing.assert_array_equal(mask, expected if there else np.zeros_like(expected))


def test_means_counts_and_ranges_are_those_of_the_scores(scored: Run) -> None:
    told = {(r["metric"], r["explainer"]): r for r in pq.read_table(scored.summary).to_pylist()}
    asked = query(
        scored.root,
        "SELECT metric, explainer, avg(value) AS mean, count(value) AS n FROM scores GROUP BY ALL",
    ).to_pylist()
    assert {(r["metric"], r["explainer"]) for r in asked} == set(told)
    for row in asked:
        one = told[row["metric"], row["explainer"]]
        assert (one["n"], one["excluded"]) == (row["n"], 6 - row["n"])
        assert one["mean"] == pytest.approx(row["mean"])
        assert one["low"] <= one["mean"] <= one["high"]
        assert (one["lowest"], one["highest"]) == (0, 1)
    assert told["insertion", "gradcam"]["fill"].startswith("the input blurred")
    assert told["insertion", "gradcam"]["excluded_by"]["failed"] == 1
    assert told["energy_pointing_game", "gradcam"]["excluded_by"] == {
        "ok": 1,  # has no box
        "all_zero": 0,
        "constant": 0,
        "not_finite": 0,
        "failed": 1,
    }
    assert told["insertion", "all_ones"]["degenerate"] == 5


def test_comparisons_can_be_queried(scored: Run) -> None:
    rows = query(scored.root, "SELECT * FROM comparisons WHERE metric = 'insertion'").to_pylist()
    pairs = [(row["explainer"], row["against"]) for row in rows]
    assert len(set(pairs)) == len(pairs)
    assert {frozenset(pair) for pair in pairs} >= {frozenset({"gradcam", name}) for name in CONTROLS}
    values: dict[str, list[float]] = {}
    for one in query(
        scored.root, "SELECT * FROM scores WHERE metric = 'insertion' ORDER BY sample_id"
    ).to_pylist():
        values.setdefault(one["explainer"], []).append(np.nan if one["value"] is None else one["value"])
    for row in rows:
        difference = np.array(values[row["explainer"]]) - np.array(values[row["against"]])
        assert row["difference"] == pytest.approx(np.nanmean(difference))
        assert row["p_holm"] >= row["p_value"]
    judged = query(scored.root, "SELECT DISTINCT metric FROM comparisons").to_pylist()
    assert {row["metric"] for row in judged} == {"insertion", "energy_pointing_game"}


def test_mean_curves_are_of_the_maps_that_have_one(scored: Run) -> None:
    curves = mean_curves(scored)
    assert set(curves) == {(name, "insertion") for name in scored.explainers}
    told = {
        r["explainer"]: r["mean"]
        for r in pq.read_table(scored.summary).to_pylist()
        if r["metric"] == "insertion"
    }
    for (name, _), curve in curves.items():
        assert np.trapezoid(curve) / (len(curve) - 1) == pytest.approx(told[name], abs=1e-5)


def test_a_mask_that_cannot_be_used_fails_its_row_and_says_why(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    Image.new("L", (32, 64)).save(tmp_path / "small.png")
    listing = "file,label,mask\na.png,0,small.png\nb.png,1,none.png\n"
    (tmp_path / "listing.csv").write_text(listing)
    Image.new("RGB", (64, 64)).save(tmp_path / "c.png")
    (tmp_path / "listing.csv").write_text(listing + "c.png,1,\n")
    run = explained(
        prepared(
            tiny_job(
                tmp_path / "run",
                dataset={"kind": "csv", "path": str(tmp_path / "listing.csv")},
                metrics=[{"name": "sparseness"}],
            )
        )
    )
    rows = query(run.root, "SELECT status, error FROM samples").to_pylist()
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "its mask is 32x64, but the image is 64x64" in rows[0]["error"]
    assert "its mask none.png: there is no such file" in rows[1]["error"]


def test_an_image_with_several_targets_counts_once(tmp_path: Path) -> None:
    """With its mean: else every interval would be too narrow."""
    job = {"explainers": [{"name": "gradcam"}], "controls": False, "dataset": {"kind": "digits", "limit": 12}}
    metrics = [{"name": "insertion", "steps": 4}, {"name": "max_box_accuracy", "thresholds": 5}]
    run = explained(prepared(tiny_job(tmp_path / "run", **job, target={"top": 3}, metrics=metrics)))
    for shard in range(run.shards):
        scores.fn(str(run.root), shard, "gradcam")
    told = {row["metric"]: row for row in summarise(run).to_pylist()}
    assert {row["n"] + row["excluded"] for row in told.values()} == {12}
    values = query(
        run.root,
        "SELECT sample_id, avg(value) AS value FROM scores WHERE metric = 'insertion' GROUP BY sample_id",
    ).to_pylist()
    each = np.array([row["value"] for row in values])
    assert told["insertion"]["mean"] == pytest.approx(each.mean())
    width = told["insertion"]["high"] - told["insertion"]["low"]
    assert width == pytest.approx(2 * 1.96 * each.std() / np.sqrt(12), rel=0.15)


def test_a_run_with_nothing_to_compare_can_be_queried(tmp_path: Path) -> None:
    job = {"explainers": [{"name": "gradcam"}], "controls": False, "dataset": {"kind": "digits", "limit": 4}}
    run = explained(prepared(tiny_job(tmp_path / "run", **job, metrics=[{"name": "sparseness"}])))
    for shard in range(run.shards):
        scores.fn(str(run.root), shard, "gradcam")
    summarise(run)
    assert query(run.root, "SELECT count(*) AS n FROM comparisons").to_pylist() == [{"n": 0}]
    assert query(run.root, "SELECT count(*) AS n FROM summary").to_pylist() == [{"n": 1}]


def test_boxes_that_all_lie_outside_leave_a_number_of_the_dataset_undefined(tmp_path: Path) -> None:
    Image.fromarray(digits.sample("test", 0).image).save(tmp_path / "a.png")
    (tmp_path / "listing.csv").write_text("file,label,xmin,ymin,xmax,ymax\na.png,0,90,90,99,99\n")
    job = {
        "explainers": [{"name": "gradcam"}],
        "dataset": {"kind": "csv", "path": str(tmp_path / "listing.csv")},
        "metrics": [{"name": "max_box_accuracy"}],
    }
    run = explained(prepared(tiny_job(tmp_path / "run", **job)))
    for name in run.explainers:
        scores.fn(str(run.root), 0, name)
    for row in summarise(run).to_pylist():
        assert (row["n"], row["excluded"], row["best"]) == (0, 1, False)
        assert np.isnan(row["mean"])


def test_a_metric_that_does_not_apply_to_an_explainer_says_why(tmp_path: Path) -> None:
    job = {"explainers": [{"name": "ddcam"}], "metrics": [{"name": "random_logit"}], "controls": False}
    run = explained(prepared(tiny_job(tmp_path / "run", dataset={"kind": "digits", "limit": 4}, **job)))
    scores.fn(str(run.root), 0, "ddcam")
    assert {row["reason"] for row in summarise(run).to_pylist()} == {
        "the metric does not apply to ddcam: it explains the predicted class only"
    }
