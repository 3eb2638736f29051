"""The commands of the README, for real: deploy, start a worker, trigger a run, find it completed on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client

from runs import ROOT, tiny_job
from storage.verify import verify

pytestmark = pytest.mark.service
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def prefect(*words: str) -> str:
    done = subprocess.run(
        [*PREFECT, *words],
        cwd=ROOT,
        env=os.environ | {"PWD": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_deployed_job_runs_on_a_worker_and_its_results_are_on_disk(server: str, tmp_path: Path) -> None:
    prefect("work-pool", "create", "floodlit", "--type", "process")
    prefect("deploy", "--name", "explain")
    with get_client(sync_client=True) as client:
        form = client.read_deployment_by_name("explain/explain").parameter_openapi_schema
    assert {"dataset", "model", "explainers", "metrics", "target"} <= form["definitions"]["Job"][
        "properties"
    ].keys()
    raw = tiny_job(
        tmp_path / "run", dataset={"kind": "digits", "limit": 16}, explainers=[{"name": "gradcam"}]
    )
    worker = subprocess.Popen(
        [*PREFECT, "worker", "start", "--pool", "floodlit", "--limit", "1"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        params = json.dumps({"job": raw})
        said = prefect("deployment", "run", "explain/explain", "--params", params, "--watch")
    finally:
        worker.terminate()
        worker.wait()
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.deployment_id is not None]
        artifacts = {artifact.key for artifact in client.read_artifacts()}
    assert [run.state_name for run in runs] == ["Completed"], said
    assert runs[0].name == "tiny"
    assert {"floodlit-progress", "floodlit-scores"} <= artifacts
    assert not verify(tmp_path / "run")
    assert len(pq.read_table(tmp_path / "run" / "summary.parquet")) == 5 * 3
