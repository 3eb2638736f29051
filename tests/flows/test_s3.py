"""A whole job with its images and its store on S3, on a real server: the same results, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from flows.explain import explain
from flows.job import Job
from flows.resume import remaining
from object_store import ObjectStore
from places import ROOT
from runs import SLOW, assert_same_results, command, explained, prepared, tiny_job, toml
from storage.datasets import digits
from storage.lock import LockedError
from storage.places import files_under, place
from storage.query import query
from storage.records import finished
from storage.run import Run
from storage.verify import verify
from tasks.scores import scores

pytestmark = [pytest.mark.service, pytest.mark.faults]
IMAGES = 24


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["file,label,xmin,ymin,xmax,ymax"]
    for index in range(IMAGES):
        sample = digits.sample("test", index)
        Image.fromarray(sample.image).save(folder / f"{index}.png")
        lines.append(",".join(map(str, [f"{index}.png", sample.label, *sample.box])))
    (folder / "5.png").write_bytes(b"no image")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder


def job(tmp_path: Path, store: str, data: str) -> dict[str, Any]:
    return tiny_job(
        store,
        tracking=f"sqlite:///{tmp_path}/mlflow.db",
        dataset={"kind": "csv", "path": f"{data}/list.csv"},
        explainers=[{"name": "gradcam"}, {"name": "slow_plugin:Slow"}],
        controls=False,
        batch={"shard": 4},
    )


def scored(root: Path) -> int:
    return sum(step.stage == "scores" for step in finished(root))


@pytest.fixture
def raw(s3: ObjectStore, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A job of which everything is on S3."""
    (tmp_path / "slow_plugin.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(str(tmp_path))
    data = place(s3.empty())
    cast(Any, data).fs.put(f"{images}/", f"{cast(Any, data).path}/", recursive=True)
    return job(tmp_path, f"{s3.empty()}/runs/one", str(data))


@contextmanager
def begun(raw: dict[str, Any], file: Path) -> Iterator[subprocess.Popen[str]]:
    """The job by the command, two shards of it scored; killed at the end of the block."""
    root = place(raw["store"])
    before = scored(root)
    flow = command(toml(raw, file), root)
    try:
        deadline = time.monotonic() + 240
        while scored(root) < before + 2:
            assert time.monotonic() < deadline, "it never came to that"
            time.sleep(0.5)
        yield flow
    finally:
        flow.kill()
        flow.wait()


def assert_as_in_a_folder(raw: dict[str, Any], tmp_path: Path) -> None:
    root = place(raw["store"])
    assert remaining(Run.open(root)) == {}
    assert verify(root) == []
    here = explained(prepared(job(tmp_path, str(tmp_path / "here"), str(tmp_path / "images"))))
    for shard in range(here.shards):
        for name in here.explainers:
            scores.fn(str(here.root), shard, name)
    assert_same_results(root, here.root)


def test_a_job_on_s3_that_is_killed_and_continued_ends_as_in_a_folder(
    server: str, raw: dict[str, Any], tmp_path: Path
) -> None:
    store = place(raw["store"])
    with begun(raw, tmp_path / "job.toml") as flow:
        flow.send_signal(signal.SIGSTOP)  # or it might be done before it is killed
        with pytest.raises(LockedError, match="is in use: job tiny"):
            explain(Job.model_validate(raw))
    assert remaining(Run.open(store))
    explain(Job.model_validate(raw))
    assert_as_in_a_folder(raw, tmp_path)
    known = query(str(store), "SELECT count(*) AS n, count(DISTINCT sample_id) AS images FROM scores")
    assert known.to_pylist() == [{"n": 3 * 2 * IMAGES, "images": IMAGES}]
    names = list(files_under(store))
    assert {"report/contact_sheet.png", "report/curves.png"} <= set(names)
    assert not [name for name in names if name.startswith("activations.zarr")], "they are dropped at the end"


@pytest.mark.long
def test_a_job_outlives_the_death_of_the_s3_server(
    s3: ObjectStore, server: str, raw: dict[str, Any], tmp_path: Path
) -> None:
    with begun(raw, tmp_path / "job.toml") as flow:
        s3.kill()
        time.sleep(3)
        s3.start()
        flow.wait(timeout=300)
    explain(Job.model_validate(raw), retry_failed=True)  # what ran into the dead server may have failed twice
    assert_as_in_a_folder(raw, tmp_path)
