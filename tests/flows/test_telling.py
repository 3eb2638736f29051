"""What a job tells Prefect: progress a stage, its workers' logs, tables, pictures and links."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterTaskRunId,
)
from prefect.client.schemas.objects import Artifact

from flows import progress
from flows.explain import explain
from flows.job import Job
from runs import SLOW, newest_flow_run, task_runs_of, tiny_job
from storage.datasets import digits
from storage.records import STAGES, Step, read_record
from tasks.artifacts import PICTURE_BYTES

pytestmark = pytest.mark.service

# Warns once a process, and its maps are what a shard's logs tell.
WARNING = SLOW.replace("import time", "import warnings").replace(
    "time.sleep(0.4)", 'warnings.warn("a plug-in is worried")'
)


def test_a_resumed_job_starts_at_what_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, float] = {}
    told: dict[UUID, float] = {}

    def create(progress: float, key: str, description: str) -> UUID:
        made[key] = progress
        return UUID(int=len(made))

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(
        progress, "update_progress_artifact", lambda key, progress: told.update({key: progress})
    )
    manifest = SimpleNamespace(findings=[])
    run = SimpleNamespace(shards=4, explainers={"a": {}, "b": {}}, root=tmp_path, manifest=manifest)
    todo = [Step("inputs", 3), *(Step("saliency", shard, "a") for shard in (1, 2))]
    stages = progress.StageProgress(run, todo)
    assert made == {
        "floodlit-progress-inputs": 75,
        "floodlit-progress-activations": 100,
        "floodlit-progress-saliency": 75,
        "floodlit-progress-scores": 100,
        "floodlit-progress": pytest.approx(100 * 21 / 24),
    }
    stages.advance(todo[0])
    assert not told, "the server is not asked for every step"
    stages.tell()
    assert sorted(told.values()) == [pytest.approx(100 * 22 / 24), 100]


@pytest.fixture(scope="module")
def told(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UUID]:
    """A complete job with a damaged image and a plug-in that warns: its store and flow run."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "warning_plugin.py").write_text(WARNING)
    (folder / "photos" / "a").mkdir(parents=True)
    for index in range(5):
        Image.fromarray(digits.sample("test", index).image).save(folder / "photos" / "a" / f"{index}.png")
    (folder / "photos" / "a" / "5.png").write_text("these are words")
    raw = tiny_job(
        folder / "run",
        name="told",
        dataset={"kind": "folder", "path": str(folder / "photos")},
        explainers=[{"name": "warning_plugin:Slow"}, {"name": "gradcam"}],
        metrics=[{"name": "insertion", "steps": 4}, {"name": "deletion", "steps": 4}],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(folder))
        explain(Job.model_validate(raw))
    return folder / "run", newest_flow_run("told")


def logs_of(run: UUID, task_run: str) -> list[tuple[int, str]]:
    (found,) = [own for own in task_runs_of(run) if own.name == task_run]
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(task_run_id=LogFilterTaskRunId(any_=[found.id])))
    return [(log.level, log.message) for log in logs]


def test_the_logs_of_a_task_run_say_what_its_worker_did(told: tuple[Path, UUID]) -> None:
    root, run = told
    label = "saliency warning_plugin:Slow shard 1/1"
    logs = logs_of(run, label)
    messages = "\n".join(message for _, message in logs)
    record = read_record(root, Step("saliency", 0, "warning_plugin:Slow"))
    assert record is not None
    assert f"begins on worker {record.worker}" in messages
    assert f"{label}: 6 rows (1 failed, 5 ok) in " in messages
    assert "UserWarning: a plug-in is worried" in messages
    assert any(
        level == 30 and "6 rows (1 failed, 5 ok)" in line for level, line in logs_of(run, "inputs shard 1/1")
    )


def artifacts_of(run: UUID) -> dict[str, Artifact]:
    with get_client(sync_client=True) as client:
        # Of all runs on the server, a single answer holds just the first 200.
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        return {str(own.key): own for own in client.read_artifacts(artifact_filter=mine)}


def test_prefect_shows_progress_tables_pictures_and_links(told: tuple[Path, UUID]) -> None:
    root, run = told
    shown = artifacts_of(run)
    stages = {f"floodlit-progress-{stage}" for stage in STAGES} | {"floodlit-progress"}
    assert {shown[key].data for key in stages} == {100}
    assert shown.keys() - stages == {
        f"floodlit-{name}" for name in ("scores", "leaderboard", "curves", "contact-sheet", "links")
    }
    for key, file in (("curves", "curves.png"), ("contact-sheet", "contact_sheet.png")):
        encoded = str(shown[f"floodlit-{key}"].data).partition("base64,")[2].partition(")")[0]
        picture = base64.b64decode(encoded, validate=True)
        assert len(picture) <= PICTURE_BYTES
        with Image.open(io.BytesIO(picture)) as small, Image.open(root / "report" / file) as whole:
            assert small.width / small.height == pytest.approx(whole.width / whole.height, rel=0.01)
    links = str(shown["floodlit-links"].data)
    assert f"mlflow ui --backend-store-uri sqlite:///{root.parent}/mlflow.db" in links
    assert f"`{root}/summary.parquet`" in links
    assert (
        f"report: `{root}/report/index.html`, also [in MLflow](http://127.0.0.1:5000/#/experiments/1/runs/"
        in links
    )
    assert "/artifactPath/index.html?workflowType=machine_learning)" in links
    names = set(pq.read_table(root / "summary.parquet")["explainer"].to_pylist())
    assert all(name in str(shown["floodlit-leaderboard"].data) for name in names)
