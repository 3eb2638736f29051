"""MLflow away: a job is refused at its start; one that MLflow leaves in its middle only has to be tracked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from typer.testing import CliRunner

from flows.cli import app
from flows.explain import explain
from flows.job import Job
from flows.server import free_port
from runs import prepared, task_runs_of, tiny_job, toml
from storage.run import Run
from storage.tracking import EXPERIMENT, TrackingError
from storage.verify import verify

Raw = Callable[..., dict[str, Any]]


def test_a_job_is_refused_before_it_starts_where_nobody_listens(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=rf"^tracking: {nobody} .*refused.*; start it") as told:
        prepared(tiny_job(tmp_path / "run", tracking=nobody))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


class _Leaving(BaseHTTPRequestHandler):
    """MLflow as far as the start of a job asks for it; then nobody listens any more."""

    def do_GET(self) -> None:
        assert self.path == "/health"
        self._answer()

    def do_POST(self) -> None:
        assert self.path == "/api/2.0/mlflow/experiments/search"
        self._answer()
        threading.Thread(target=self._leave).start()

    def _answer(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def _leave(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def log_message(self, *_: Any) -> None:
        pass


def times(root: Path) -> dict[Path, int]:
    """When the done-records were written, but for those of activations, which are dropped after tracking."""
    stages = [path for path in (root / "done").iterdir() if path.name != "activations"]
    return {path: path.stat().st_mtime_ns for stage in stages for path in stage.rglob("*.json")}


@pytest.mark.service
def test_results_are_complete_without_mlflow_and_the_job_run_again_only_tracks(
    server: str, digits_job: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    leaving = HTTPServer(("127.0.0.1", 0), _Leaving)
    serving = threading.Thread(target=leaving.serve_forever)
    serving.start()
    away = f"http://127.0.0.1:{leaving.server_port}"
    raw = digits_job(explainers=[{"name": "gradcam"}], controls=False, tracking=away)
    job = toml(raw, tmp_path / "job.toml")

    first = CliRunner().invoke(app, ["run", str(job)])
    serving.join()
    root = Path(raw["store"])
    assert first.exit_code == 1, first.output
    told = [line for line in first.output.splitlines() if line.startswith("floodlit: ")]
    assert len(told) == 1
    assert told[0].startswith("floodlit: tracking: MLflow says ")
    assert told[0].endswith(f"run the same job again, which only logs to MLflow: the results are in {root}")
    assert "Traceback" not in first.output
    assert verify(root) == []
    assert CliRunner().invoke(app, ["status", str(root)]).exit_code == 0
    written = times(root)
    assert len(written) == 9

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert explain(Job.model_validate(raw | {"tracking": uri}))["steps_done"] == 0
    assert times(root) == written
    with get_client(sync_client=True) as client:
        (again,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
    assert [task.name for task in task_runs_of(again.id)] == ["summary"]
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["gradcam", Run.open(root).job["name"]]
