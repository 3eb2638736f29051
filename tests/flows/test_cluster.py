"""Where a job can run: kinds of clusters with a real one of Dask's behind them, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import distributed
import psutil
import pytest
import torch
from distributed.security import Security
from prefect_dask import DaskTaskRunner
from pydantic import ValidationError

from flows import cluster as clusters
from flows.cluster import ClusterError, check, resources_of, settings, worker_variables
from flows.explain import explain
from flows.job import Cluster, Job
from storage.verify import verify

Raw = Callable[..., dict[str, Any]]
SMALL: dict[str, Any] = {
    "explainers": [{"name": "gradcam"}],
    "dataset": {"kind": "digits", "limit": 16},
    "controls": False,
}


@pytest.mark.service
def test_any_cluster_class_serves(server: str, digits_job: Raw) -> None:
    table = {
        "kind": "class",
        "cluster_class": "distributed.LocalCluster",
        "workers": 2,
        "arguments": {"threads_per_worker": 1, "dashboard_address": ":0", "resources": {"GPU": 1}},
    }
    raw = digits_job(**SMALL, cluster=table)
    assert explain(Job.model_validate(raw))["steps_done"] == 4
    assert not verify(Path(raw["store"]))


@pytest.mark.service
def test_a_job_leaves_the_environment_as_it_was(
    server: str, digits_job: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise later child processes would compute with the number of threads of this job's workers."""
    for name in worker_variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    seen: list[str | None] = []
    monkeypatch.setattr("flows.explain.send_logs", lambda _: seen.append(os.environ.get("OMP_NUM_THREADS")))
    explain(Job.model_validate(digits_job(**SMALL, cluster={"kind": "local", "workers": 1})))
    assert seen == [str(os.cpu_count())]  # they were set while the job ran
    left = {name: os.environ[name] for name in worker_variables() if name in os.environ}
    assert left == {"MALLOC_ARENA_MAX": "3"}


@pytest.mark.service
def test_strangers_neither_reach_the_processes_of_a_job_nor_disturb_it(
    server: str, digits_job: Raw, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever is let in can run code as the user of the job."""
    seen: dict[str, Any] = {}

    def intrude(client: distributed.Client) -> None:
        seen["ports"] = _listening() - before
        scheduler = client.scheduler_info()
        seen["addresses"] = [scheduler["address"]] + [
            address for worker, facts in scheduler["workers"].items() for address in (worker, facts["nanny"])
        ]
        seen["errors"] = [
            _error_of_a_stranger(address.replace("tls:", protocol), security)
            for address in seen["addresses"]
            for protocol, security in (("tcp:", None), ("tls:", Security.temporary()))
        ]
        seen["answers"] = [_http(port) for _, port in seen["ports"]]

    monkeypatch.setattr("flows.explain.send_logs", intrude)
    with socket.socket() as taken:
        with suppress(OSError):
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        before = _listening()  # those of other tests and their servers
        done = explain(Job.model_validate(digits_job(**SMALL, cluster={"kind": "local", "workers": 2})))
    assert done["steps_done"] == 4
    assert len(seen["ports"]) >= 5
    assert {ip for ip, _ in seen["ports"]} == {"127.0.0.1"}
    assert len(seen["addresses"]) == 5  # the scheduler; two workers, each with its nanny
    assert all(address.startswith("tls://127.0.0.1:") for address in seen["addresses"])
    assert len(seen["errors"]) == 10
    assert all(isinstance(error, OSError) for error in seen["errors"]), seen["errors"]
    assert all(answer == b"" or b" 404 " in answer for answer in seen["answers"]), seen["answers"]
    said = capfd.readouterr()
    for word in ("Traceback", "8787", "TLS", "SSL", "distributed"):
        assert word not in said.err + said.out


def _listening() -> set[tuple[str, int]]:
    """Addresses and ports at which this process and its children listen."""
    me = psutil.Process()
    return {
        (listening.laddr.ip, listening.laddr.port)
        for process in [me, *me.children(recursive=True)]
        for listening in process.net_connections("tcp")
        if listening.status == psutil.CONN_LISTEN
    }


def _error_of_a_stranger(address: str, security: Security | None) -> Exception | None:
    """What an attempt to ask this address of Dask for its identity raises; None if it answers."""

    async def ask() -> None:
        async with distributed.rpc(address, timeout=3, **_arguments_of(security)) as there:
            await there.identity()

    try:
        asyncio.run(ask())
    except Exception as error:
        return error
    return None


def _arguments_of(security: Security | None) -> dict[str, Any]:
    return {} if security is None else {"connection_args": security.get_connection_args("client")}


def _http(port: int) -> bytes:
    """The first line that a port answers an HTTP request with, empty if it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        stranger.sendall(b"GET /info/main/workers.html HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with suppress(ConnectionResetError, BrokenPipeError):
            return stranger.recv(1000).partition(b"\r\n")[0]
    return b""


def test_a_scheduler_with_tls_is_reached_with_the_key_of_dasks_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = Security.temporary()
    monkeypatch.setattr(clusters, "_check_versions", lambda client: None)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", security=key
    ) as cluster:
        table = Cluster(kind="address", address=cluster.scheduler_address)
        assert table.address.startswith("tls://")
        for wrong in ({}, _tls(Security.temporary())):
            with (
                dask.config.set(wrong),
                DaskTaskRunner() as runner,
                pytest.raises(
                    ClusterError, match=r"cluster\.address: .* to this TLS key; start it, .* or set"
                ) as refusal,
            ):
                clusters.attach(runner, table)
            assert "\n" not in str(refusal.value)
        with dask.config.set(_tls(key)), DaskTaskRunner() as runner:
            client, workers = clusters.attach(runner, table)
            assert workers == 1
            assert client.submit(sum, [1, 2]).result() == 3


def _tls(key: Security) -> dict[str, str]:
    """Dask's configuration of a client that has this key."""
    parts = {"ca-file": key.tls_ca_file, "client.cert": key.tls_client_cert, "client.key": key.tls_client_key}
    return {f"distributed.comm.tls.{name}": value for name, value in parts.items()}


def test_each_job_has_a_key_of_its_own() -> None:
    from flows.cluster import _arguments

    keys = [_arguments(Cluster(kind=kind))["security"].tls_worker_key for kind in ("local", "local", "cuda")]
    assert len(set(keys)) == 3
    assert all("BEGIN PRIVATE KEY" in key for key in keys)  # the text, not the name of a file


@pytest.mark.service
def test_a_cluster_class_that_does_not_start_is_told_in_one_line(server: str, digits_job: Raw) -> None:
    table = {
        "kind": "class",
        "cluster_class": "distributed.LocalCluster",
        "workers": 1,
        "arguments": {"no_such_argument": 1},
    }
    with pytest.raises(ClusterError, match=r"the cluster did not start: .*no_such_argument") as refusal:
        explain(Job.model_validate(digits_job(**SMALL, cluster=table)))
    assert "\n" not in str(refusal.value)


@pytest.mark.service
def test_workers_of_another_version_are_refused(
    server: str, digits_job: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = clusters.versions()
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        table = {"kind": "address", "address": cluster.scheduler_address}
        monkeypatch.setattr(clusters, "SAME", ("torch",))
        major, minor, patch = here["python"].split(".")
        monkeypatch.setattr(clusters.platform, "python_version", lambda: f"{major}.{minor}.{int(patch) + 1}")
        monkeypatch.setattr(clusters, "version", lambda name: "1.2.3")
        raw = digits_job(**SMALL, cluster=table)
        told = rf"worker tcp://.* has torch {torch.__version__.partition('+')[0]}.*, but the flow has 1\.2\.3"
        with pytest.raises(ClusterError, match=told):
            explain(Job.model_validate(raw))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "address"}, "needs the key address"),
        ({"kind": "class", "workers": 2}, "needs the key cluster_class"),
        ({"kind": "class", "cluster_class": "distributed.LocalCluster"}, "needs the key workers"),
        ({"kind": "local", "address": "tcp://a:1"}, "does not take the key address"),
        ({"kind": "cuda", "arguments": {"a": 1}}, "does not take the key arguments"),
        ({"kind": "address", "address": "tcp://a:1", "workers": 3}, "does not take the key workers"),
    ],
)
def test_keys_of_another_kind_are_refused(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Cluster.model_validate(table)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "class", "cluster_class": "nowhere.SLURMCluster", "workers": 1}, "install nowhere"),
        (
            {"kind": "class", "cluster_class": "distributed.NoCluster", "workers": 1},
            "has no distributed.NoCl",
        ),
    ],
)
def test_a_class_that_is_not_there_is_refused_in_one_line(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ClusterError, match=told) as refusal:
        check(Cluster.model_validate(table))
    assert "\n" not in str(refusal.value)


def test_far_more_workers_than_cores_are_refused_on_this_machine_alone() -> None:
    check(Cluster(kind="local", workers=32))
    with pytest.raises(ClusterError, match=r"cluster\.workers = 5000, but this machine has \d+ cores; take"):
        check(Cluster(kind="local", workers=5000))
    table = {"kind": "class", "cluster_class": "distributed.LocalCluster", "workers": 5000}
    check(Cluster.model_validate(table))  # its machines are others


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ClusterError, match="PyTorch sees no GPU here"):
        check(Cluster(kind="cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ClusterError, match="there are 2 GPUs, and each worker needs one"):
        check(Cluster(kind="cuda", workers=3))
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="needs dask-cuda"):
        check(Cluster(kind="cuda"))


@pytest.mark.parametrize("offered", [{}, {"GPU": 1}])
def test_a_gpu_is_asked_for_where_one_is_offered_and_not_waited_for_elsewhere(
    offered: dict[str, int],
) -> None:
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, resources=offered
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert resources_of(client) == offered


class Argument:
    """What a task is called with."""


def test_what_a_task_was_called_with_is_not_kept_when_it_is_done() -> None:
    with (
        dask.config.set(settings(1)),
        distributed.LocalCluster(
            n_workers=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        for _ in range(60):
            client.submit(type, Argument(), pure=False).result()
        gc.collect()
        assert sum(isinstance(thing, Argument) for thing in gc.get_objects()) < 60
