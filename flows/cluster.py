"""Where tasks run: processes on this machine, a Dask scheduler that is already there, or any Dask cluster."""

from __future__ import annotations

import os
import platform
import signal
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import dask
import distributed
import torch
from prefect.utilities.importtools import from_qualified_name
from prefect_dask import DaskTaskRunner

from flows.job import Cluster
from tasks.signals import kept_from_children

GPU = {"GPU": 1}  # what a step that computes takes of a worker's resources, where workers offer it
START_SECONDS = 600.0  # for the first worker of a cluster that has to start machines
SAME = ("floodlit", "torch", "zarr", "prefect", "dask", "distributed")  # versions workers must share with us


class ClusterError(RuntimeError):
    """A cluster that cannot serve, said in one line."""


def settings(workers: int) -> dict[str, object]:
    """Dask's configuration for the job.

    glibc returns large tensors to the system after every layer, which halves the speed of a convolutional
    network; the thresholds must stand before a worker process starts. They rule the main arena only, and
    tasks run in a thread, which would have one of its own: hence one arena. Workers x threads = cores.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    return {
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 4294967296,
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 68719476736,
        "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
        "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": threads,
        "distributed.worker.multiprocessing-method": "spawn",  # Zarr deadlocks after fork
        "distributed.scheduler.allowed-failures": 1,  # a shard that kills workers is not to kill them all
        # Of the messages each connection keeps for developers. Of a Prefect task run one has 100 kB, and with
        # the usual 1,000 a connection the flow grows by a GB in 10,000 task runs.
        "distributed.admin.low-level-log-length": 10,
        # What Dask looks at 10 to 100 times a second, for its dashboard, took a tenth of each worker's core.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "2s",
        "distributed.worker.memory.monitor-interval": "500ms",
    }


def check(cluster: Cluster) -> None:
    """Refuse a cluster that this machine cannot have.

    Raises
    ------
    ClusterError
        If GPUs, or the package that the kind needs, are not there.
    """
    if cluster.kind == "cuda":
        there = torch.cuda.device_count()
        if not there:
            raise ClusterError('cluster.kind = "cuda", and PyTorch sees no GPU here; use "local"')
        if cluster.workers and cluster.workers > there:
            raise ClusterError(
                f"cluster.workers = {cluster.workers}, and there are {there} GPUs, one a worker"
            )
        if find_spec("dask_cuda") is None:
            raise ClusterError(
                'cluster.kind = "cuda" needs dask-cuda; install the extra: pip install .[cuda]'
            )
    if cluster.kind == "class":
        _class_of(cluster)


def _class_of(cluster: Cluster) -> Any:
    assert cluster.cluster_class is not None
    package = cluster.cluster_class.partition(".")[0]
    try:
        return from_qualified_name(cluster.cluster_class)
    except ImportError as error:
        raise ClusterError(
            f"cluster.cluster_class: there is no {cluster.cluster_class} here ({error}); install "
            f"{package.replace('_', '-')}, or correct the name"
        ) from error
    except (AttributeError, ValueError) as error:
        raise ClusterError(f"cluster.cluster_class: {package} has no {cluster.cluster_class}") from error


def attach(runner: DaskTaskRunner, cluster: Cluster) -> tuple[distributed.Client, int]:
    """Point the flow's task runner, which has not started yet, to ``cluster``; returns client and workers.

    What :func:`check` refuses is not looked at again.

    Raises
    ------
    ClusterError
        If the cluster does not start, cannot be reached, has no workers, or they are of other versions.
    """
    dask.config.set(settings(cluster.expected_workers))
    if cluster.kind == "address":
        runner.address = cluster.address
    else:
        runner.cluster_class = runner.resolved_cluster_class = _local(cluster) or _class_of(cluster)
        runner.cluster_kwargs = {**_arguments(cluster), "n_workers": cluster.expected_workers}
    workers = _workers(runner, cluster)
    if cluster.kind in {"address", "class"}:
        _check_versions(runner.client)
    return runner.client, workers


def _local(cluster: Cluster) -> Any:
    if cluster.kind == "local":
        return distributed.LocalCluster
    if cluster.kind == "cuda":
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster
    return None


def _arguments(cluster: Cluster) -> dict[str, Any]:
    """Of the cluster class. One task at a time: a task fills its cores, or its GPU."""
    if cluster.kind == "class":
        return cluster.arguments
    common = {"threads_per_worker": 1, "dashboard_address": None}
    return common | ({"processes": True} if cluster.kind == "local" else {"resources": GPU})


def _workers(runner: DaskTaskRunner, cluster: Cluster) -> int:
    """How many workers there are, or will be."""
    try:
        # Ctrl-C goes to every process of the terminal, and only the flow is to end by it.
        with kept_from_children([signal.SIGINT]):
            client = runner.client
    except Exception as error:  # whatever a cluster's class raises at its arguments, or a scheduler's silence
        if cluster.kind == "address":
            told = f"no Dask scheduler answers at {cluster.address}: start it or correct cluster.address"
        else:
            first = _first(error)
            told = f"the cluster did not start: {type(first).__name__}: {' '.join(str(first).split())}"
        raise ClusterError(told) from error
    if cluster.kind == "class":
        try:
            client.wait_for_workers(1, timeout=START_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"no worker of {cluster.cluster_class} came up within {START_SECONDS:.0f} s; see its queue "
                "and logs"
            ) from error
        return cluster.expected_workers
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise ClusterError(
            f"the Dask scheduler at {cluster.address} has no workers: start some with `dask worker`"
        )
    return workers


def _first(error: BaseException) -> BaseException:
    """What an error began with."""
    return error if error.__cause__ is None else _first(error.__cause__)


def versions() -> dict[str, str]:
    """Of what a worker must have as the flow has it."""
    return {"python": platform.python_version()} | {name: version(name) for name in SAME}


def _check_versions(client: distributed.Client) -> None:
    ours = versions()
    try:
        theirs = client.run(versions)
    except Exception as error:  # the first worker that lacks the package, in its words
        raise ClusterError(
            f"the workers cannot run Floodlit ({type(error).__name__}: {error}); install the same version "
            "there"
        ) from error
    for worker, found in theirs.items():
        for name, own in ours.items():
            # Patch releases of Python understand each other.
            same = (
                own.rpartition(".")[0] == found[name].rpartition(".")[0]
                if name == "python"
                else own == found[name]
            )
            if not same:
                raise ClusterError(
                    f"worker {worker} has {name} {found[name]}, and here it is {own}; make them agree"
                )


def resources_of(client: distributed.Client) -> dict[str, int]:
    """What a step that computes asks of a worker: a GPU, if workers offer any as a Dask resource.

    Asked for where nobody offers it, a resource would be waited for in silence and for ever.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return GPU if any(worker.get("resources", {}).get("GPU") for worker in workers) else {}
