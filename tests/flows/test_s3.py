"""A whole job with its images and its store on S3, on a real server: the same results, whatever is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.explain import explain
from flows.job import Job
from flows.resume import remaining
from object_store import ObjectStore
from runs import ROOT, SLOW, assert_same_results, command, tiny_job, toml, wait_for
from storage import digits
from storage.places import files_under, place
from storage.query import query
from storage.records import finished
from storage.run import Run
from storage.verify import verify

pytestmark = [pytest.mark.service, pytest.mark.faults]
IMAGES = 48


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
        batch={"shard": 8, "images": 4},
    )


def scored(root: Path) -> int:
    return sum(step.stage == "scores" for step in finished(root))


def test_a_job_on_s3_ends_as_in_a_folder_though_the_flow_and_the_server_are_killed(
    s3: ObjectStore, server: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_plugin.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(str(tmp_path))
    data, store = place(s3.empty()), place(s3.empty()) / "runs" / "one"
    cast(Any, data).fs.put(f"{images}/", f"{cast(Any, data).path}/", recursive=True)
    raw = job(tmp_path, str(store), str(data))
    path = toml(raw, tmp_path / "job.toml")

    flow = command(path, store)
    wait_for(lambda: scored(store) >= 2, 240)
    second = CliRunner().invoke(app, ["run", str(path)])
    assert second.exit_code == 1
    assert "is in use: job tiny" in second.stderr
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    assert remaining(Run.open(store))

    flow = command(path, store)
    wait_for(lambda: scored(store) >= 5, 240)
    s3.kill()
    time.sleep(3)
    s3.start()
    flow.wait(timeout=300)
    if remaining(Run.open(store)):  # what ran into the dead server may have failed twice
        explain(Job.model_validate(raw), retry_failed=True)

    assert remaining(Run.open(store)) == {}
    assert verify(store) == []
    explain(Job.model_validate(job(tmp_path, str(tmp_path / "here"), str(images))))
    assert_same_results(store, tmp_path / "here")
    known = query(str(store), "SELECT count(*) AS n, count(DISTINCT sample_id) AS images FROM scores")
    assert known.to_pylist() == [{"n": 3 * 2 * IMAGES, "images": IMAGES}]
    names = list(files_under(store))
    assert "report/contact_sheet.png" in names
    assert not [name for name in names if name.startswith("activations.zarr")], "they are dropped at the end"
