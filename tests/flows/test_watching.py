"""A job that is paused, cancelled or interrupted leaves a store that the same job continues from."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.states import Cancelling, Paused
from typer.testing import CliRunner

from flows import watch
from flows.cli import app
from flows.explain import explain
from flows.job import Job, JobError
from flows.retries import not_retried
from runs import assert_same_results, command, newest_flow_run, saliency_done, toml, wait_for
from storage.lock import holder
from storage.records import finished
from storage.verify import verify

pytestmark = pytest.mark.service


def state_of(run: UUID) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run).state_name)


def set_state(run: UUID, state: Any) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, state)


def ended(process: subprocess.Popen[str]) -> str:
    """What a stopped command said; it has let go of its store, which is not complete."""
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return said


def assert_resumable(root: Path) -> None:
    assert holder(root) is None
    assert not verify(root)
    shown = CliRunner().invoke(app, ["status", str(root)])
    assert shown.exit_code == 1
    assert "incomplete: " in shown.output


@pytest.fixture
def start(slow_job: dict[str, Any], tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the job ``disturbed`` by the command."""
    slow_job |= {"name": "disturbed", "dataset": {"kind": "digits", "limit": 160}}
    file = toml(slow_job, tmp_path / "job.toml")
    made: list[subprocess.Popen[str]] = []

    def started() -> subprocess.Popen[str]:
        made.append(command(file, Path(slow_job["store"])))
        return made[-1]

    yield started
    for process in made:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.faults
def test_a_job_interrupted_paused_and_cancelled_ends_as_the_undisturbed_one(
    server: str, slow_job: dict[str, Any], start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    root = Path(slow_job["store"])
    for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):  # Ctrl-C goes to the group
        before = saliency_done(root)
        running = start()
        wait_for(lambda before=before: saliency_done(root) > before, 240)
        send(running.pid, number)
        assert "floodlit: stopped; run the same job again to continue" in ended(running)
        assert_resumable(root)
        assert state_of(newest_flow_run("disturbed")) == "Crashed"

    before = saliency_done(root)
    running = start()
    wait_for(lambda: saliency_done(root) > before, 240)
    its = newest_flow_run("disturbed")
    set_state(its, Paused(timeout_seconds=600))
    time.sleep(2 * watch.LOOK_SECONDS + 3)  # until it has looked, and what was under way is done
    paused = finished(root)
    time.sleep(3)
    assert finished(root) == paused
    assert "disturbed" in str(holder(root))
    second = ended(start())
    assert "is in use: job disturbed" in second
    with get_client(sync_client=True) as client:
        client.resume_flow_run(its)
    wait_for(lambda: len(finished(root)) > len(paused))
    set_state(its, Cancelling())
    assert "floodlit: cancelled; run the same job again to continue" in ended(running)
    assert state_of(its) == "Cancelled"
    assert_resumable(root)

    already = len(finished(root))
    assert explain(Job.model_validate(slow_job))["steps_done"] == 6 * 10 - already
    assert not verify(root)
    undisturbed = slow_job | {"store": str(tmp_path / "undisturbed")}
    explain(Job.model_validate(undisturbed))
    assert_same_results(root, tmp_path / "undisturbed")


def test_a_suspended_run_leaves_and_a_pause_that_nobody_ends_fails(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.1)

    @flow
    def watching(state: str) -> None:
        with watch.Watch() as seen:
            assert not seen.stopping()
            assert seen.settle() is None
            monkeypatch.setattr(seen, "_state", Paused(timeout_seconds=-1, reschedule=state == "suspended"))
            assert seen.stopping()
            seen._left.set()
            seen.settle()

    with pytest.raises(Pause):
        watching("suspended")
    with pytest.raises(watch.NotResumedError, match="not resumed in time"):
        watching("paused")


def test_a_server_that_does_not_answer_stops_nothing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def silent(**_: Any) -> None:
        asked.append(True)
        raise OSError("no server")

    @flow
    def watching() -> bool:
        monkeypatch.setattr(watch, "get_client", silent)
        with watch.Watch() as seen:
            wait_for(lambda: len(asked) > 2, 10)
            return seen.stopping()

    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)
    assert watching() is False


@pytest.mark.parametrize(("error", "attempts"), [(JobError, 1), (OSError, 2)])
def test_what_would_fail_again_is_not_retried(server: str, error: type[Exception], attempts: int) -> None:
    made = []

    @flow(retries=1)
    def failing() -> None:
        with not_retried(JobError):
            made.append(True)
            raise error("again")

    with pytest.raises(error):
        failing()
    assert len(made) == attempts
