"""Faults, for real: processes killed with -9, broken images, a full disk. Nothing lost, nothing twice."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.explain import IncompleteError, explain
from flows.job import Job
from flows.resume import remaining
from runs import (
    SLOW,
    assert_same_results,
    command,
    newest_flow_run,
    saliency_done,
    scores_of,
    task_runs_of,
    toml,
    wait_for,
)
from storage.lock import holder
from storage.records import finished
from storage.run import Run
from storage.verify import verify

Raw = Callable[..., dict[str, Any]]
pytestmark = [pytest.mark.service, pytest.mark.faults]


UNDISTURBED: list[Path] = []


@pytest.fixture
def undisturbed(server: str, slow_job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the slow job that nothing disturbed, made once for all tests of this file."""
    if not UNDISTURBED:
        store = tmp_path_factory.mktemp("undisturbed") / "run"
        explain(Job.model_validate(slow_job | {"store": str(store)}))
        UNDISTURBED.append(store)
    return UNDISTURBED[0]


def dask_workers(parent: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(parent).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline()) and "resource_tracker" not in " ".join(child.cmdline())
    ]


def kill(*victims: psutil.Process) -> None:
    for victim in victims:
        victim.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("how_many", [pytest.param(1, marks=pytest.mark.long), 2])
def test_killed_workers_cost_nothing(
    server: str, slow_job: dict[str, Any], undisturbed: Path, how_many: int
) -> None:
    """Both at once: the steps that wait for a worker are killed with it, also those Prefect has not seen."""
    root = Path(slow_job["store"])
    killed: list[psutil.Process] = []

    def kill_some() -> None:
        wait_for(lambda: saliency_done(root) >= 1)
        time.sleep(0.8)  # in the middle of the next shard
        killed.extend(dask_workers(os.getpid())[:how_many])
        kill(*killed)

    killer = threading.Thread(target=kill_some)
    killer.start()
    explain(Job.model_validate(slow_job))
    killer.join()
    assert len(killed) == how_many
    assert not verify(root)
    assert remaining(Run.open(root)) == {}
    assert_same_results(root, undisturbed)


@pytest.mark.long
def test_the_server_and_all_workers_killed_at_once_cost_nothing(
    server: str, slow_job: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    root, file = Path(slow_job["store"]), toml(slow_job, tmp_path / "job.toml")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        flow = command(file, root)
    wait_for(lambda: root.exists() and saliency_done(root) >= 1)
    servers = [p for p in psutil.Process(flow.pid).children() if "flows.server" in " ".join(p.cmdline())]
    victims = [*servers, *dask_workers(flow.pid)]
    assert len(victims) == 3
    kill(*victims)
    said = flow.communicate(timeout=300)[0]
    assert flow.returncode == 0, said
    assert "Traceback" not in said
    assert not verify(root)
    assert_same_results(root, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_job_that_is_stopped_twice_ends_in_one_line_and_leaves_nothing_behind(
    server: str, slow_job: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    root, file = Path(slow_job["store"]), toml(slow_job, tmp_path / "job.toml")
    flow = command(file, root)
    wait_for(lambda: root.exists() and saliency_done(root) >= 1)
    children = psutil.Process(flow.pid).children(recursive=True)
    for _ in range(3):
        if number == signal.SIGINT:
            os.killpg(flow.pid, number)  # as a terminal sends it: to the workers too
        else:
            flow.send_signal(number)
        time.sleep(0.2)
    said = flow.communicate(timeout=120)[0]
    assert flow.returncode == 1, said
    told = [line for line in said.splitlines() if line.startswith("floodlit:")]
    assert told == said.splitlines()[-1:] == ["floodlit: stopped; run the same job again to continue"]
    assert "Traceback" not in said
    assert holder(root) is None
    assert not root.with_name(f"{root.name}.lock").exists()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 30)
    missing = len(remaining(Run.open(root)))
    assert missing
    assert explain(Job.model_validate(slow_job))["steps_done"] == missing
    assert not verify(root)


def test_a_worker_that_always_dies_fails_the_run_by_name(
    server: str, slow_job: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "slow_plugin.py").write_text(
        SLOW.replace("time.sleep(0.4)", "import os; os.kill(os.getpid(), 9)")
    )
    slow_job["dataset"]["limit"] = 16
    with pytest.raises(IncompleteError, match=r"saliency slow_plugin:Slow shard 1/1: KilledWorker"):
        explain(Job.model_validate(slow_job))
    left = remaining(Run.open(Path(slow_job["store"])))
    assert {(step.stage, step.explainer) for step in left} == {
        ("saliency", "slow_plugin:Slow"),
        ("scores", "slow_plugin:Slow"),
    }
    runs = task_runs_of(newest_flow_run(slow_job["name"]))
    assert "saliency slow_plugin:Slow shard 1/1" in [
        run.name for run in runs if run.state and run.state.is_crashed()
    ]


def test_a_killed_flow_is_continued_and_only_what_is_missing_is_done(
    server: str, slow_job: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    root, file = Path(slow_job["store"]), toml(slow_job, tmp_path / "job.toml")
    flow = command(file, root)
    wait_for(lambda: root.exists() and saliency_done(root) >= 2)
    orphans = dask_workers(flow.pid)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    wait_for(lambda: not any(orphan.is_running() and orphan.status() != "zombie" for orphan in orphans))
    already = finished(root)
    stamps = {step: (root / step.path).stat().st_mtime_ns for step in already}
    assert already
    missing = len(remaining(Run.open(root)))
    assert missing
    done = explain(Job.model_validate(slow_job))
    assert done["steps_done"] == missing
    untouched = [s for s in already if s.stage in {"inputs", "saliency", "scores"}]
    assert all((root / step.path).stat().st_mtime_ns == stamps[step] for step in untouched)
    assert not verify(root)
    assert_same_results(root, undisturbed)


def test_broken_images_are_rows_with_their_errors(server: str, digits_job: Raw, tmp_path: Path) -> None:
    from PIL import Image

    from storage.datasets import digits

    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for index in range(6):
        Image.fromarray(digits.sample("test", index).image).save(folder / f"{index}.jpg", quality=95)
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "2.jpg").write_bytes(b"")
    (folder / "3.jpg").write_text("these are words")
    raw = digits_job(
        dataset={"kind": "folder", "path": str(tmp_path / "photos")},
        metrics=[{"name": "insertion", "steps": 4}],
        batch={"shard": 16, "images": 2},
    )
    explain(Job.model_validate(raw))
    import pyarrow.parquet as pq

    root = Path(raw["store"])
    samples = pq.read_table(root / "samples.parquet").to_pylist()
    assert [s["status"] for s in samples] == ["ok", "failed", "failed", "failed", "ok", "ok"]
    assert all(s["error"] for s in samples if s["status"] == "failed")
    assert all(s["prediction"] is None for s in samples if s["status"] == "failed")
    scores = scores_of(root)
    broken = {f"a/{i}.jpg" for i in (1, 2, 3)}
    for (sample, _, _, _), (value, status) in scores.items():
        assert (value is None) == (sample in broken)
        assert (status == "failed") == (sample in broken)
    summary = pq.read_table(root / "summary.parquet").to_pylist()
    assert {(row["n"], row["excluded"]) for row in summary} == {(3, 3)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("dying", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_full_disk_is_one_clear_error_and_the_run_resumes(
    server: str, digits_job: Raw, small_disk: Path, tmp_path: Path, dying: bool
) -> None:
    """Also where all workers are killed while it is full: the store is then the reason that counts."""
    raw = digits_job(
        store=str(small_disk / "run"),
        tracking=f"sqlite:///{tmp_path}/mlflow.db",
        dataset={"kind": "digits", "limit": 96},
    )
    file = toml(raw, tmp_path / "job.toml")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 1_300_000)
    first = command(file, small_disk / "run")
    if dying:
        wait_for(lambda: shutil.disk_usage(small_disk).free < 100_000 or first.poll() is not None)
        kill(*dask_workers(first.pid))
    said = first.communicate(timeout=300)[0]
    assert first.returncode == 1, said
    assert "the disk is full" in said
    assert "run the same job again" in said
    assert "Traceback" not in said
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    second = command(file, small_disk / "run")
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert not verify(small_disk / "run")
