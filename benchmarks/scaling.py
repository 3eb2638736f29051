"""Measures what many workers cost the flow: plan, queue, Prefect and Dask as in a job, with sleeping tasks.

    python benchmarks/scaling.py [--workers 1 4 16 64] [--images 1000000] [--rate 3] [--records 20000]

Workers are Dask workers with one thread, several of them in a process. The server, the scheduler and the
workers share this machine, so they slow each other down. Shards are those of a job of ``--images`` images of
224x224 and two explainers, one of them expensive. Two things are scaled: the length of the sleeps, so that
``--rate`` task runs end per second (a sleep takes at least three seconds on average), and for few workers the
number of shards, at most six per worker.

Before that, the program measures how long the start of a job with ``--records`` done-records takes to read
them, and to plan and queue as many steps. At the end it measures how many task runs end per second if no task
sleeps.
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
# The project comes first on the path, so that explainers.py beside this file does not hide the package.
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
from flows.plan import Done, pending_steps, shard_images
from flows.resume import remaining
from flows.server import prefect_server
from storage.manifest import ExplainerEntry, Manifest
from storage.records import StageFacts, Step, finished, write_record
from storage.run import Run
from storage.verify import verify

# How long the steps of a shard take, in any unit. Scores take equally long for both explainers.
LENGTHS = {"inputs": 1.0, "activations": 2.0, "scores": 10.0, "cheap": 1.0, "dear": 20.0}
EXPLAINERS = {"cheap": True, "dear": False}  # whether they read activations
MEAN = (3.0 + 21.0 + 2 * 10.0) / 6  # mean length of the six steps of a shard
HOSTS = 4  # processes that the workers share
AIM = 0.9  # efficiency to reach


@task(name="sleep", cache_policy=NO_CACHE)
def sleep(root: str, shard: int, seconds: float) -> dict[str, Any]:
    """A task that looks like a step of a job to Prefect and Dask."""
    time.sleep(seconds)
    return {"step": f"{root}/{shard}", "rows": 2608, "seconds": seconds}


def ignore(*_: object) -> None:
    """Takes the place of the job's progress bar and its handling of failures."""


def length(step: Step, mean: float) -> float:
    """The seconds of a step: within 10 % of the length of its kind, always the same for the same step."""
    kind = step.explainer if step.stage == "saliency" else step.stage
    return mean * LENGTHS[kind] / MEAN * random.Random(str(step)).uniform(0.9, 1.1)


@flow(name="scaling", task_runner=DaskTaskRunner())
def job(address: str, shards: int, mean: float) -> dict[str, float]:
    """Run the plan of this many shards to its end; returns times in seconds and memory in bytes."""
    context = FlowRunContext.get()
    assert context is not None
    assert isinstance(context.task_runner, DaskTaskRunner)
    client, workers = attach(context.task_runner, Cluster(kind="address", address=address))
    pending = pending_steps(shards, EXPLAINERS, {"insertion"}, Done())
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
    """CPU seconds of a process; for another process than this one, with its living children."""
    each = [process] if process.pid == os.getpid() else [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in each)


def server_of(process: psutil.Process) -> psutil.Process:
    """The Prefect server among a process's children."""
    return next(child for child in process.children() if "flows.server" in " ".join(child.cmdline()))


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Start a scheduler in this process, as a local job does, and its workers; yields its address."""
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
    """Run a job of ``shards`` shards on ``workers`` workers, with steps of ``mean`` seconds."""
    with cluster(workers) as address:
        made: dict[str, float] = job(address, shards, mean)
        return made


def task_runs(counts: list[int], images: int, rate: float) -> None:
    """Print what jobs on each number of workers take, and what a task run costs if no task sleeps."""
    print(f"{images:,} images of 224x224, two explainers; times in s, memory in MB")
    titles = ("workers", "shards", "task runs", "mean", "wall", "runs/s", "efficiency", "submitting")
    print(" ".join(f"{title:>10}" for title in (*titles, "flow CPU", "server CPU", "MB/1,000")))
    for workers in counts:
        rows = shard_images(images, len(EXPLAINERS), workers, 224 * 224, 0)
        shards = min(-(-images // rows), 6 * workers)
        mean = max(3.0, workers / rate)
        print_row(workers, shards, mean, simulated(workers, shards, mean))
    made = simulated(16, 20, 0.0)
    print_row(16, 20, 0.0, made)
    print(
        f"The last line is without sleeps: this machine ends at most {made['runs'] / made['wall']:.1f} task "
        "runs per second."
    )


def print_row(workers: int, shards: int, mean: float, made: dict[str, float]) -> None:
    """Print the line of one job, with a verdict on its efficiency if its tasks slept."""
    runs = made["runs"]
    numbers = [workers, shards, runs, mean, made["wall"], runs / made["wall"], made["efficiency"]]
    numbers += [made["submitting"] / runs, made["flow"] / runs, made["server"] / runs]
    numbers += [made["grown"] / 1e6 / runs * 1000]
    verdict = "" if not mean else "  OK" if made["efficiency"] >= AIM else "  NOT"
    print(" ".join(f"{number:10.3f}" if number % 1 else f"{number:10.0f}" for number in numbers) + verdict)


def timed(what: str, call: Callable[[], Any]) -> None:
    """Print how long a call takes."""
    began = time.perf_counter()
    call()
    print(f"{what:<32} {time.perf_counter() - began:8.2f} s")


def resuming(records: int, folder: Path) -> None:
    """Print how long it takes to read this many done-records, as every start of a job does."""
    about = {"name": "synthetic", "seed": 0, "target": 0, "tolerance": 0}
    about |= {"batch": {"images": 16, "forwards": 64}}
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
    for step in pending_steps(shards, dict.fromkeys(names, True), set(), Done()):
        files = [folder / name for name in sorted(run.layout.files_of(step))]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(str(step).encode())
        facts = StageFacts(metrics=(), cached=True)
        write_record(
            folder, step, rows=16, statuses={"ok": 16}, files=files, seconds=1.0, worker="", facts=facts
        )
    print(f"\n{len(finished(folder)):,} done-records, each of a small file:")
    timed("listing (records.finished)", lambda: finished(folder))
    timed("checking all (verify)", lambda: verify(folder))
    timed("what is left (resume.remaining)", lambda: remaining(run))
    timed("planning and queueing all", lambda: queued(shards, names))


def queued(shards: int, names: list[str]) -> None:
    """Pass every step through the queue of 64 workers."""
    queue = Queue(pending_steps(shards, dict.fromkeys(names, True), set(), Done()), most_shards=128)
    while queue.pending or queue.running:
        queue.take(128 - len(queue.running))
        queue.succeed(next(iter(queue.running)))


def main() -> None:
    """Measure the start of a job and jobs on several numbers of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=3.0, help="task runs that end per second")
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
