"""The commands of the README, for real: deploy, start a worker, trigger runs, find them completed on disk."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flow_runs import suspend_flow_run
from prefect.states import Cancelling

from flows.explain import explain
from flows.job import Job
from places import ROOT
from runs import assert_same_results, saliency_done, wait_for
from storage.lock import holder
from storage.run import Run
from storage.verify import verify

pytestmark = pytest.mark.service
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
SLOWLY = 400.0  # seconds for what a worker and a flow need to start on a busy machine, and more


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


@pytest.fixture(scope="module")
def deployed(server: str) -> dict[str, DeploymentResponse]:
    """What ``prefect deploy --all`` makes, by flow."""
    prefect("work-pool", "create", "floodlit", "--type", "process")
    prefect("deploy", "--all")
    with get_client(sync_client=True) as client:
        return {name: client.read_deployment_by_name(f"{name}/{name}") for name in ("explain", "train-ptame")}


def test_deployments_have_a_schedule_that_is_off_a_limit_tags_retries_and_a_form(
    deployed: dict[str, DeploymentResponse],
) -> None:
    for name, tag, cron, keys in (
        ("explain", "explain", "0 2 * * *", {"dataset", "model", "explainers", "metrics", "target"}),
        ("train-ptame", "train", "0 4 * * 0", {"dataset", "model", "auxiliary", "loss", "steps"}),
    ):
        made = deployed[name]
        (schedule,) = made.schedules
        assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == (cron, "UTC", False)
        assert made.global_concurrency_limit is not None
        assert made.global_concurrency_limit.limit == 1
        assert made.concurrency_options is not None
        assert made.concurrency_options.collision_strategy == "ENQUEUE"
        assert set(made.tags) == {"floodlit", tag}
        assert made.description
        assert made.version == "1"
        assert made.job_variables["env"]["PREFECT_FLOWS_DEFAULT_RETRIES"] == "2"
        tables = (own.get("properties", {}) for own in made.parameter_openapi_schema["definitions"].values())
        (job,) = (own for own in tables if "store" in own)
        assert keys <= job.keys()


@pytest.fixture
def worker(slow_job: dict[str, Any], tmp_path: Path) -> Iterator[None]:
    """A worker of the pool; flows that it starts find the slow plug-in."""
    process = subprocess.Popen(
        [*PREFECT, "worker", "start", "--pool", "floodlit"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_WORKER_QUERY_SECONDS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield
    process.terminate()
    process.wait()


def state_of(run: UUID) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run).state_name)


@pytest.mark.long
def test_runs_on_one_store_wait_for_each_other_and_continue_when_suspended_or_cancelled(
    deployed: dict[str, DeploymentResponse], worker: None, slow_job: dict[str, Any], tmp_path: Path
) -> None:
    root = Path(slow_job["store"])
    slow_job |= {"name": "deployed", "dataset": {"kind": "digits", "limit": 160}}
    with get_client(sync_client=True) as client:
        first, second = (
            client.create_flow_run_from_deployment(deployed["explain"].id, parameters={"job": slow_job}).id
            for _ in range(2)
        )
    wait_for(lambda: "Running" in {state_of(first), state_of(second)}, SLOWLY)
    if state_of(first) != "Running":  # workers take runs of the same second in any order
        first, second = second, first
    wait_for(lambda: saliency_done(root) >= 1, SLOWLY)
    wait_for(lambda: state_of(second) == "AwaitingConcurrencySlot", SLOWLY)
    assert "job deployed" in str(holder(root))

    suspend_flow_run(flow_run_id=first)
    wait_for(lambda: state_of(second) == "Running", SLOWLY)
    before = saliency_done(root)
    wait_for(lambda: saliency_done(root) > before, SLOWLY)
    assert state_of(first) == "Suspended"
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(second, Cancelling())
    wait_for(lambda: state_of(second) == "Cancelled", SLOWLY)
    wait_for(lambda: holder(root) is None)
    assert not verify(root)
    assert not Run.open(root).summary.exists()

    with get_client(sync_client=True) as client:
        client.resume_flow_run(first)
    wait_for(lambda: state_of(first) == "Completed", SLOWLY)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(first).name == "deployed"
    assert len(pq.read_table(root / "summary.parquet")) == 2 * 3
    assert not verify(root)
    explain(Job.model_validate(slow_job | {"store": str(tmp_path / "undisturbed")}))
    assert_same_results(root, tmp_path / "undisturbed")
