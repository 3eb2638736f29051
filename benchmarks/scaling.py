"""What many workers cost the flow: plan, queue, Prefect and Dask as in a job, with sleeps for tasks.

    python benchmarks/scaling.py [--workers 1 4 16 64] [--images 1000000] [--rate 3] [--records 20000]

Workers are Dask workers of one thread, several to a process; the server, the scheduler and they share this
machine, so all of them slow each other down. Shards are those of a job of so many images of 224x224 and two
explainers, one of them dear. What is scaled: the length of the sleeps, so that ``--rate`` task runs end every
second (at least three seconds each), and for few workers the number of shards, at most six a worker.

Before that, how long a start of a job with so many done-records takes to read them, and to plan and queue as
many steps; after it, how many task runs end in a second where nothing sleeps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")  # read when Prefect is imported
# First, so that explainers.py beside this file hides no package.
sys.path.insert(0, str(Path(__file__).parents[1]))

import dask
import distributed
import psutil
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect_dask import DaskTaskRunner

from explainers.registry import explainers
from flows.cluster import attach, settings
from flows.drain import Queue, drain
from flows.job import Cluster
from flows.plan import Done, plan, shard_images
from flows.resume import remaining
from flows.server import prefect_server
from storage.manifest import ExplainerEntry, Manifest
from storage.records import Step, finished, write_record
from storage.run import Run
from storage.verify import verify

# Of a shard, in any unit; scores take as long for every explainer.
LENGTHS = {"inputs": 1.0, "activations": 2.0, "scores": 10.0, "cheap": 1.0, "dear": 20.0}
EXPLAINERS = {"cheap": True, "dear": False}
MEAN = (3.0 + 21.0 + 2 * 10.0) / 6
HOSTS = 4  # processes that workers share
AIM = 0.9


@task(name="sleep", cache_policy=NO_CACHE)
def sleep(root: str, shard: int, seconds: float) -> dict[str, Any]:
    """What a step of a job does as far as Prefect and Dask can tell."""
    time.sleep(seconds)
    return {"step": f"{root}/{shard}", "rows": 2608, "seconds": seconds}


def ignore(*_: object) -> None:
    """What a job tells its progress bar and its failures."""


def length(step: Step, mean: float) -> float:
    """Seconds of a step, within a tenth of those of its kind."""
    kind = step.explainer if step.stage == "saliency" else step.stage
    return mean * LENGTHS[kind] / MEAN * random.Random(str(step)).uniform(0.9, 1.1)


@flow(name="scaling", task_runner=DaskTaskRunner())
def job(address: str, shards: int, mean: float) -> dict[str, float]:
    """Drain the plan of so many shards; returns what it took."""
    context = FlowRunContext.get()
    assert context is not None
    assert isinstance(context.task_runner, DaskTaskRunner)
    client, workers = attach(context.task_runner, Cluster(kind="address", address=address))
    pending = plan(shards, EXPLAINERS, {"insertion"}, Done())
    seconds = {step: length(step, mean) for step in pending}
    spent = {"submitting": 0.0, "submitting, CPU": 0.0}

    def submit(step: Step, halve: bool) -> Any:  # noqa: ARG001
        before = time.perf_counter(), time.thread_time()
        named = sleep.with_options(task_run_name=step.label(shards))
        future = named.submit(root="scaling", shard=step.shard, seconds=seconds[step])
        spent["submitting"] += time.perf_counter() - before[0]
        spent["submitting, CPU"] += time.thread_time() - before[1]
        return future

    server, own = server_of(psutil.Process()), psutil.Process()
    memory, cpu = own.memory_info().rss, (cpu_of(own), cpu_of(server))
    began = time.perf_counter()
    complete = drain(
        pending,
        submit,
        client=client,
        workers=workers,
        on_end=ignore,
        on_failure=ignore,
        stopping=lambda: False,
        hurrying=lambda: False,
    )
    wall = time.perf_counter() - began
    assert complete
    return spent | {
        "runs": len(pending),
        "wall": wall,
        "efficiency": sum(seconds.values()) / (workers * wall),
        "flow": cpu_of(own) - cpu[0],
        "server": cpu_of(server) - cpu[1],
        "grown": own.memory_info().rss - memory,
        "size": own.memory_info().rss,
    }


def cpu_of(process: psutil.Process) -> float:
    """Seconds of a process and its children, the finished ones apart."""
    each = [process] if process.pid == os.getpid() else [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in each)


def server_of(process: psutil.Process) -> psutil.Process:
    """The Prefect server among a process's children."""
    return next(child for child in process.children() if "flows.server" in " ".join(child.cmdline()))


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """A scheduler in this process, as a local job has it, and its workers; yields its address."""
    dask.config.set(settings(workers))
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
    ) as here:
        one = {"cls": "distributed.Worker", "opts": {"nthreads": 1, "dashboard": False}}
        hosts = min(HOSTS, workers)
        specs = [{f"{host}-{i}": one for i in range(workers // hosts)} for host in range(hosts)]
        command = [sys.executable, "-m", "distributed.cli.dask_spec", here.scheduler_address, "--spec"]
        started = [
            subprocess.Popen([*command, json.dumps(spec)], stderr=subprocess.DEVNULL) for spec in specs
        ]
        try:
            with distributed.Client(here, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=120)
            yield here.scheduler_address
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def simulated(workers: int, shards: int, mean: float) -> dict[str, float]:
    """A job of so many shards on so many workers."""
    with cluster(workers) as address:
        made: dict[str, float] = job(address, shards, mean)
        return made


def task_runs(counts: list[int], images: int, rate: float) -> None:
    """Print what jobs on 1 to 64 workers take, and what a task run costs where none sleeps."""
    print(f"{images:,} images of 224x224, two explainers; times in s, memory in MB")
    titles = ("workers", "shards", "task runs", "mean", "wall", "runs/s", "efficiency", "submitting")
    print(" ".join(f"{title:>10}" for title in (*titles, "flow CPU", "server CPU", "MB/1,000")))
    for workers in counts:
        rows = shard_images(images, len(EXPLAINERS), workers, 224 * 224, 0)
        shards = min(-(-images // rows), 6 * workers)
        mean = max(3.0, workers / rate)
        told(workers, shards, mean, simulated(workers, shards, mean))
    made = simulated(16, 20, 0.0)
    told(16, 20, 0.0, made)
    print(
        f"the last line, where nothing sleeps: this machine ends {made['runs'] / made['wall']:.1f} task runs "
        "a second at most"
    )


def told(workers: int, shards: int, mean: float, made: dict[str, float]) -> None:
    runs = made["runs"]
    numbers = [workers, shards, runs, mean, made["wall"], runs / made["wall"], made["efficiency"]]
    numbers += [made["submitting"] / runs, made["flow"] / runs, made["server"] / runs]
    numbers += [made["grown"] / 1e6 / runs * 1000]
    verdict = "" if not mean else "  OK" if made["efficiency"] >= AIM else "  NOT"
    print(" ".join(f"{number:10.3f}" if number % 1 else f"{number:10.0f}" for number in numbers) + verdict)


def timed(what: str, call: Callable[[], Any]) -> None:
    began = time.perf_counter()
    call()
    print(f"{what:<32} {time.perf_counter() - began:8.2f} s")


def resuming(records: int, folder: Path) -> None:
    """Print what reading so many done-records takes, as every start of a job does."""
    about = {"name": "synthetic", "seed": 0}
    names = explainers.names()[:10]
    shards = records // (2 + 2 * len(names))
    manifest = Manifest(
        job=about,
        identity={},
        versions={},
        model_fingerprint="",
        dataset_fingerprint="",
        rows=16 * shards,
        shard_rows=16,
        input_shape=(3, 2, 2),
        explainers={name: ExplainerEntry(parameters={}, grid=(1, 1)) for name in names},
        metrics={},
    )
    run = Run.create_or_open(folder, manifest)
    for step in plan(shards, dict.fromkeys(names, True), set(), Done()):
        file = folder / "data" / step.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(step).encode())
        notes: dict[str, Any] = {"metrics": [], "cached": True}
        write_record(
            folder, step, rows=16, statuses={"ok": 16}, files=[file], seconds=1.0, worker="", **notes
        )
    print(f"\n{len(finished(folder)):,} done-records, each of a small file:")
    timed("listing (records.finished)", lambda: finished(folder))
    timed("checking all (verify)", lambda: verify(folder))
    timed("what is left (resume.remaining)", lambda: remaining(run))
    timed("planning and queueing all", lambda: queued(shards, names))


def queued(shards: int, names: list[str]) -> None:
    """Every step through the queue of 64 workers."""
    queue = Queue(plan(shards, dict.fromkeys(names, True), set(), Done()), most_shards=128)
    while queue.pending or queue.running:
        queue.take(128 - len(queue.running))
        queue.succeed(next(iter(queue.running)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=3.0, help="task runs that end in a second")
    parser.add_argument("--records", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        resuming(asked.records, Path(folder) / "run")
        os.environ["PREFECT_HOME"] = folder
        with prefect_server() as address:
            address()
            task_runs(asked.workers, asked.images, asked.rate)
        print(f"Prefect's database: {(Path(folder) / 'prefect.db').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
