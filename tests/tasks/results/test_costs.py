"""What explaining costs: time and memory of known size, and the table of a run."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runs import explained, prepared, tiny_job
from storage.datasets import digits
from storage.records import Step, read_record
from tasks.meter import Meter
from tasks.results.costs import write_costs
from tasks.scores import scores


def test_the_meter_sees_the_time_and_the_memory_of_what_is_within() -> None:
    meter = Meter(torch.device("cpu"))
    start = time.perf_counter()
    for _ in range(2):
        with meter:
            block = np.ones(200 * 2**20 // 8)
            time.sleep(0.05)
            del block
        time.sleep(0.2)
    assert 0.1 < meter.seconds < time.perf_counter() - start - 0.4
    assert 190 * 2**20 < meter.peak < 320 * 2**20


def test_a_run_tells_what_each_explainer_took(tmp_path: Path) -> None:
    few = {"dataset": {"kind": "digits", "limit": 20}, "metrics": [{"name": "sparseness"}]}
    few |= {"explainers": [{"name": "gradcam"}, {"name": "occlusion", "window": 32}]}
    run = explained(prepared(tiny_job(tmp_path / "run", **few)))
    for shard in range(run.shards):
        for name in run.explainers:
            scores.fn(str(run.root), shard, name)
    rows = {row["explainer"]: row for row in write_costs(run).to_pylist()}
    assert set(rows) == set(run.explainers)
    records = [read_record(run.root, Step("saliency", shard, "occlusion")) for shard in range(run.shards)]
    seconds = sum(record.facts.cost.explain_seconds for record in records)
    assert rows["occlusion"]["milliseconds"] == pytest.approx(1000 * seconds / run.rows)
    assert rows["occlusion"]["milliseconds"] > rows["random"]["milliseconds"]
    assert rows["gradcam"]["forward_passes"] is None
    assert rows["occlusion"]["forward_passes"] > 4
    assert all(row["peak_mib"] >= 0 and row["images"] == run.batch_images for row in rows.values())


def test_images_that_were_not_explained_do_not_make_it_cheap(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(8):
        (folder / f"{index}.png").write_bytes(b"no image")
    Image.fromarray(digits.sample("test", 0).image).save(folder / "8.png")
    named = [{"name": "gradcam"}, {"name": "rise", "masks": 30}]
    chosen = {"dataset": {"kind": "folder", "path": str(folder)}, "explainers": named}
    chosen |= {"metrics": [{"name": "sparseness"}], "controls": False}
    run = explained(prepared(tiny_job(tmp_path / "run", **chosen)))
    for shard in range(run.shards):
        scores.fn(str(run.root), shard, "rise")
    row, rise = write_costs(run).to_pylist()
    assert rise["forward_passes"] == 30
    record = read_record(run.root, Step("saliency", 0, "gradcam"))
    assert record.rows == 9
    assert row["milliseconds"] == pytest.approx(1000 * record.facts.cost.explain_seconds)
