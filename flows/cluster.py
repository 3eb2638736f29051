"""Workers for the tasks: processes on this machine, an existing Dask scheduler, or any Dask cluster."""

from __future__ import annotations

import logging
import os
import platform
import signal
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import dask
import distributed
import torch
from distributed.security import Security
from prefect.utilities.importtools import from_qualified_name
from prefect_dask import DaskTaskRunner

from flows.job import Cluster
from storage.errors import FloodlitError, one_line
from tasks.signals import kept_from_children

GPU = {"GPU": 1}  # the Dask resource that a computing step takes, if workers offer it
START_SECONDS = 600.0  # time limit for the first worker; a cluster may have to start machines
# Pages about the tasks, which any user of the machine could open. A local job has its progress in Prefect.
NO_PAGES: dict[str, list[str]] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
PER_CORE = 4  # most local workers per core; every worker is a process that holds the model
SAME = ("floodlit", "torch", "zarr", "prefect", "dask", "distributed")  # same version on flow and workers


class ClusterError(FloodlitError):
    """The cluster cannot run the job; the message is one line."""

    exit_code = 2


def settings(workers: int) -> dict[str, object]:
    """Return Dask's configuration for the job.

    glibc returns large tensors to the system after every layer, which halves the speed of a convolutional
    network. Two thresholds prevent this. They must be set before a worker process starts, and they apply to
    the main arena only. Tasks run in a thread, and a thread would get an arena of its own; therefore the
    number of arenas is limited to one.

    Parameters
    ----------
    workers
        Number of worker processes. Workers x threads = cores.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    return {
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 4294967296,
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 68719476736,
        "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
        "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": threads,
        "distributed.worker.multiprocessing-method": "spawn",  # Zarr deadlocks after fork
        "distributed.scheduler.allowed-failures": 1,  # a shard that kills its worker must not kill them all
        # Each connection keeps its last messages for developers. The message of a Prefect task run has
        # 100 kB, and with the usual 1,000 per connection the flow grows by a GB in 10,000 task runs.
        "distributed.admin.low-level-log-length": 10,
        # Dask's dashboard takes samples 10 to 100 times a second, which took a tenth of each worker's core.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "2s",
        "distributed.worker.memory.monitor-interval": "500ms",
    }


def worker_variables() -> list[str]:
    """Names of the environment variables that Dask sets for the workers of a job.

    Dask sets them in the process that starts the workers and leaves them there. Later child processes would
    inherit them, and so would the workers of the next job, whatever its own settings say.
    """
    with dask.config.set(settings(1)):
        return [*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED"]


def check(cluster: Cluster) -> None:
    """Check that this machine can have the cluster.

    Raises
    ------
    ClusterError
        If GPUs are missing, or the package that the kind needs, or if there are far more workers than cores.
    """
    most = max(32, PER_CORE * (os.cpu_count() or 1))
    if cluster.kind == "local" and cluster.workers and cluster.workers > most:
        raise ClusterError(
            f"cluster.workers = {cluster.workers}, but this machine has {os.cpu_count()} cores; "
            f"take at most {most}"
        )
    if cluster.kind == "cuda":
        there = torch.cuda.device_count()
        if not there:
            raise ClusterError('cluster.kind = "cuda" needs a GPU, but PyTorch sees no GPU here; use "local"')
        if cluster.workers and cluster.workers > there:
            raise ClusterError(
                f"cluster.workers = {cluster.workers}, but there are {there} GPUs, and each worker needs one"
            )
        if find_spec("dask_cuda") is None:
            raise ClusterError(
                'cluster.kind = "cuda" needs dask-cuda; install the extra: pip install .[cuda]'
            )
    if cluster.kind == "class":
        _class_of(cluster)


def _class_of(cluster: Cluster) -> Any:
    """Import the cluster class of ``kind = "class"``; raise ClusterError if that fails."""
    assert cluster.cluster_class is not None
    package = cluster.cluster_class.partition(".")[0]
    try:
        return from_qualified_name(cluster.cluster_class)
    except ImportError as error:
        raise ClusterError(
            f"cluster.cluster_class: {cluster.cluster_class} cannot be imported ({error}); install "
            f"{package.replace('_', '-')}, or correct the name"
        ) from error
    except (AttributeError, ValueError) as error:
        raise ClusterError(f"cluster.cluster_class: {package} has no {cluster.cluster_class}") from error


def attach(runner: DaskTaskRunner, cluster: Cluster) -> tuple[distributed.Client, int]:
    """Start the cluster, or connect to it, and make the flow's task runner use it.

    :func:`check` has to be called first; its checks are not repeated here.

    Parameters
    ----------
    runner
        The task runner of the flow run, which has not started yet.

    Returns
    -------
    client
        The client of the cluster's scheduler.
    workers
        Number of workers that there are, or that were asked for.

    Raises
    ------
    ClusterError
        If the cluster does not start, cannot be reached or has no workers, or if workers have other versions.
    """
    dask.config.set(settings(cluster.expected_workers))
    if cluster.kind == "address":
        runner.address = cluster.address
    else:
        # The runner starts resolved_cluster_class, which it sets when it is made; copies get cluster_class.
        runner.cluster_class = runner.resolved_cluster_class = _local(cluster) or _class_of(cluster)
        runner.cluster_kwargs = {**_arguments(cluster), "n_workers": cluster.expected_workers}
    workers = _workers(runner, cluster)
    if cluster.kind in {"address", "class"}:  # workers of the other kinds run in this environment
        _check_versions(runner.client)
    return runner.client, workers


def _local(cluster: Cluster) -> Any:
    """Return the class that starts workers on this machine; None for kinds that do not."""
    if cluster.kind == "local":
        return distributed.LocalCluster
    if cluster.kind == "cuda":
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster
    return None


def _arguments(cluster: Cluster) -> dict[str, Any]:
    """Return the arguments of the cluster class.

    A worker of this machine runs one task at a time, because a task fills its cores or its GPU.

    Whoever connects to a scheduler or a worker can run code in it, and any user of the machine can reach
    their ports. Therefore both sides of each connection prove that they have the key of this job. The key is
    made here, is kept in memory and goes to the workers through pipes. The SSL library of Python reads keys
    from files only, so each process writes one for a moment into a folder that only its user can enter.
    """
    if cluster.kind == "class":
        return cluster.arguments
    common = {
        "threads_per_worker": 1,
        "security": Security.temporary(),
        # The scheduler always opens an HTTP port. Port 0 is any free one: 8787 may be taken.
        "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        # Dask logs strangers at the ports and lost workers with tracebacks; the flow deals with the workers.
        "silence_logs": logging.CRITICAL,
    }
    return common | ({"processes": True} if cluster.kind == "local" else {"resources": GPU})


def _workers(runner: DaskTaskRunner, cluster: Cluster) -> int:
    """Start the runner's client; return how many workers there are, or will be."""
    try:
        # Ctrl-C goes to every process of the terminal, but only the flow must end by it.
        pages: dict[str, Any] = NO_PAGES if cluster.kind in {"local", "cuda"} else {}
        with kept_from_children([signal.SIGINT]), dask.config.set(pages):
            client = runner.client
    except Exception as error:  # a cluster class may raise anything, and a scheduler may not answer
        # A scheduler that refuses a key may also just not answer, so both are told.
        tls = f"{cluster.address} {error}".lower()
        if cluster.kind == "address" and ("tls" in tls or "ssl" in tls):
            told = (
                f"cluster.address: no Dask scheduler answers at {cluster.address} to this TLS key; start it, "
                "correct the address, or set Dask's distributed.comm.tls.ca-file, client.cert and client.key "
                "(docs/running.md)"
            )
        elif cluster.kind == "address":
            told = f"no Dask scheduler answers at {cluster.address}; start it or correct cluster.address"
        else:
            first = _first(error)
            told = f"the cluster did not start: {type(first).__name__}: {one_line(first)}"
        raise ClusterError(told) from error
    if cluster.kind == "class":
        try:
            client.wait_for_workers(1, timeout=START_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"no worker of {cluster.cluster_class} started within {START_SECONDS:.0f} s; check its queue "
                "and its logs"
            ) from error
        return cluster.expected_workers  # the others may start later, e.g. when a queue has room
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise ClusterError(
            f"the Dask scheduler at {cluster.address} has no workers; start some with `dask worker`"
        )
    return workers


def _first(error: BaseException) -> BaseException:
    """Return the first error of a chain of causes."""
    return error if error.__cause__ is None else _first(error.__cause__)


def versions() -> dict[str, str]:
    """Versions that workers must share with the flow, by name; "python" is one of them."""
    return {"python": platform.python_version()} | {name: version(name) for name in SAME}


def _check_versions(client: distributed.Client) -> None:
    """Raise ClusterError if a worker has another version of a package than this process."""
    ours = versions()
    try:
        theirs = client.run(versions)
    except Exception as error:  # the error of the first worker that lacks the package
        raise ClusterError(
            f"the workers cannot run Floodlit ({type(error).__name__}: {error}); install the same version "
            "on them"
        ) from error
    for worker, found in theirs.items():
        for name, own in ours.items():
            # Patch releases of Python can exchange pickled objects.
            same = (
                own.rpartition(".")[0] == found[name].rpartition(".")[0]
                if name == "python"
                else own == found[name]
            )
            if not same:
                raise ClusterError(
                    f"worker {worker} has {name} {found[name]}, but the flow has {own}; install the same one"
                )


def resources_of(client: distributed.Client) -> dict[str, int]:
    """Resources that a computing step requests: one GPU if any worker offers the Dask resource ``GPU``.

    Dask waits silently and without end for a resource that no worker offers, so nothing is requested then.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return GPU if any(worker.get("resources", {}).get("GPU") for worker in workers) else {}
