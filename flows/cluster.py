"""Where tasks run: processes on this machine, or a Dask scheduler that is already there."""

from __future__ import annotations

import os

import dask
import distributed
from prefect_dask import DaskTaskRunner

from flows.job import Cluster


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
    }


def attach(runner: DaskTaskRunner, cluster: Cluster) -> tuple[distributed.Client, int]:
    """Point the flow's task runner, which has not started yet, to ``cluster``; returns client and workers.

    Raises
    ------
    ClusterError
        If the scheduler cannot be reached or has no workers.
    """
    if cluster.kind == "local":
        dask.config.set(settings(cluster.workers))
        runner.cluster_class = runner.resolved_cluster_class = distributed.LocalCluster
        runner.cluster_kwargs = {
            "n_workers": cluster.workers,
            "threads_per_worker": 1,  # one task at a time: a task fills its cores
            "processes": True,
            "dashboard_address": None,
        }
    else:
        runner.address = cluster.address
    try:
        workers = len(runner.client.scheduler_info(n_workers=-1)["workers"])
    except OSError as error:
        raise ClusterError(
            f"no Dask scheduler answers at {cluster.address}: start it or correct cluster.address"
        ) from error
    if not workers:
        raise ClusterError(
            f"the Dask scheduler at {cluster.address} has no workers: start some with `dask worker`"
        )
    return runner.client, workers
