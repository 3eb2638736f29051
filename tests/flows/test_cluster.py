"""Where a job can run: kinds of clusters with a real one of Dask's behind them, and what is refused."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
import torch
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
