"""The loop that runs steps on Dask ends in words where no step can end any more, and counts kills."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import distributed
import pytest
from distributed.scheduler import KilledWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import drain as draining
from flows.drain import KILLED_ATTEMPTS, LostClusterError, drain, mark_crashed
from flows.server import free_port
from storage.datasets.opening import ChangedDatasetError
from storage.records import Step

STEP = Step("inputs", 0)


class Submitted:
    """What ``submit`` returns, without Prefect: a future of Dask, and no task run that a server knows."""

    def __init__(self, future: distributed.Future) -> None:
        self.wrapped_future, self.task_run_id = future, uuid4()

    def result(self) -> Any:
        return self.wrapped_future.result()


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    ) as cluster:
        yield cluster


def drained(client: distributed.Client, work: Callable[[], Any], **changes: Any) -> bool:
    chosen: dict[str, Any] = {
        "client": client,
        "workers": 1,
        "on_end": lambda step: None,
        "on_failure": lambda step, error, attempts: None,
        "stopping": lambda: False,
        "hurrying": lambda: False,
    }
    return drain(
        {STEP: set()}, lambda step, halve: Submitted(client.submit(work, pure=False)), **chosen | changes
    )


def killed() -> None:
    raise KilledWorker("task", SimpleNamespace(address="tcp://gone"), 1)  # type: ignore[arg-type]


def test_a_scheduler_that_is_gone_is_told_in_one_line() -> None:
    port = free_port()
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [*program, "--port", str(port), "--dashboard-address", ":0"], **silent
    ) as scheduler:

        def kill() -> bool:
            scheduler.kill()
            return False

        told = "^the connection to the Dask scheduler was lost; run the same job again to continue$"
        try:
            with distributed.Client(f"tcp://127.0.0.1:{port}", timeout=60) as client:
                client._timeout = 1  # seconds to look for the scheduler when it is gone
                with pytest.raises(LostClusterError, match=told):
                    drained(client, lambda: None, hurrying=kill)
        finally:
            scheduler.kill()


def test_a_cluster_without_workers_is_not_waited_for_without_end(
    cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "ALONE_SECONDS", 1.0)
    monkeypatch.setattr(draining, "ASK_SECONDS", 0.1)
    with distributed.Client(cluster) as client:
        start = time.monotonic()
        assert drained(client, lambda: time.sleep(2))  # a worker is there, however long its step takes
        assert time.monotonic() - start > 2
        cluster.scale(0)
        with pytest.raises(LostClusterError, match=r"has had no worker for 1 s.*run the same job again"):
            drained(client, lambda: None)


def test_killed_steps_are_tried_again_although_prefect_does_not_know_them(
    server: str, cluster: distributed.LocalCluster
) -> None:
    """A worker may die before it has told Prefect of its task run, and the server may be away."""
    given_up: list[tuple[str, int]] = []

    with distributed.Client(cluster) as client:
        complete = drained(
            client,
            killed,
            on_failure=lambda step, error, count: given_up.append((type(error).__name__, count)),
        )
    assert complete
    assert given_up == [("KilledWorker", KILLED_ATTEMPTS)]
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        mark_crashed(Submitted(None), "the server is away")


def test_a_worker_that_dies_while_the_disk_is_full_leaves_the_disk_as_the_reason(
    server: str, cluster: distributed.LocalCluster
) -> None:
    """Then not even the failure can be written, and the next run does the step."""

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with distributed.Client(cluster) as client, pytest.raises(OSError, match="No space left") as full:
        drained(client, killed, on_failure=write)
    assert full.value.errno == errno.ENOSPC


def changed() -> None:
    raise ChangedDatasetError("dataset.path: it changed")


def test_a_dataset_that_changed_ends_the_job_at_once_and_marks_no_step(
    cluster: distributed.LocalCluster,
) -> None:
    given_up: list[Step] = []
    tried: list[Step] = []
    with distributed.Client(cluster) as client:

        def submit(step: Step, halve: bool) -> Submitted:
            tried.append(step)
            return Submitted(client.submit(changed, pure=False))

        with pytest.raises(ChangedDatasetError, match=r"^dataset\.path: it changed$"):
            drain(
                {Step("inputs", shard): set() for shard in range(20)},
                submit,  # type: ignore[arg-type]
                client=client,
                workers=1,
                on_end=lambda step: None,
                on_failure=lambda step, *_: given_up.append(step),
                stopping=lambda: False,
                hurrying=lambda: False,
            )
    assert not given_up
    assert len(tried) == 2  # one that runs and one that waits
