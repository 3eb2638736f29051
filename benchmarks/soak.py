"""Watches a long job: memory of every process, answers of the Prefect UI, and speed beside a bare loop.

    python benchmarks/soak.py --real FOLDER [--images 50000] [--sample 1600] [--every 10]

FOLDER (or the variable FLOODLIT_REAL) holds ``nets.py`` with a ``CifarResNet``,
``weights/resnet20_cifar10.pth`` and ``images/cifar10/<class>/*.png``. The images are listed repeatedly until
there are enough, each time under other ids. ``floodlit run`` explains them with Grad-CAM, DD-CAM and RISE and
scores them with insertion, deletion and sparseness on two workers. Every few seconds the program reads the
resident memory of the job's processes and requests the pages that the Prefect UI loads. Slopes are least
squares over the job's work without its first quarter. The bare loop does the same work before and after the
job, in as many processes side by side with one thread each, and stores nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from overhead import bare_loop, phases

# isort: split
import httpx
import numpy as np
import psutil
import torch

from flows.job import Job
from flows.job_file import read_job
from storage.records import finished

WORKERS = 2
WARM_UP = 0.25  # share of the job in which processes load their libraries; it is left out of the slopes
GROWTH, RATIO, ANSWER, TASK_RUNS = 0.05, 0.9, 2.0, 2000  # aims: memory, speed, seconds per page, task runs
PAGES = {
    "index page": ("GET", "/", None),
    "health": ("GET", "/api/health", None),
    "flow runs": ("POST", "/api/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 100}),
    "task runs": ("POST", "/api/task_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 200}),
}
JOB = """
name = "soak"
store = "run"
controls = false
explainers = [{{name = "gradcam"}}, {{name = "ddcam"}}, {{name = "rise", masks = 4}}]
metrics = [{{name = "insertion", steps = 3}}, {{name = "deletion", steps = 3}}, {{name = "sparseness"}}]
batch = {{images = 64}}
cluster = {{kind = "local", workers = {workers}}}

[dataset]
kind = "csv"
path = "listing.csv"
limit = {limit}

[model]
source = "{real}/nets.py:CifarResNet"
weights = "{real}/weights/resnet20_cifar10.pth"
layer = "layer3"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
"""


@dataclass
class Watch:
    """Samples of a running job, one every few seconds.

    Attributes
    ----------
    store
        The run folder.
    began
        When the job was started, in seconds since the epoch.
    memory
        By process, samples (seconds since the start, finished steps, MB).
    answers
        By page, the seconds that each answer took.
    refused
        How many samples ended with a request that failed.
    task_runs
        How many task runs Prefect knows.
    """

    store: Path
    began: float
    memory: dict[str, list[tuple[float, int, float]]] = field(default_factory=dict)
    answers: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0
    task_runs: int = 0

    def look(self, job: psutil.Process, address: str) -> None:
        """Take one sample: read the memory and request the pages."""
        steps = len(finished(self.store))
        for name, megabytes in sizes(job).items():
            self.memory.setdefault(name, []).append((time.time() - self.began, steps, megabytes))
        with httpx.Client(base_url=address, timeout=30, follow_redirects=True) as client:
            try:
                for page, (method, path, body) in PAGES.items():
                    asked = time.perf_counter()
                    client.request(method, path, json=body).raise_for_status()
                    self.answers.setdefault(page, []).append(time.perf_counter() - asked)
                self.task_runs = client.post("/api/task_runs/count", json={}).json()
            except httpx.HTTPError:
                self.refused += 1


def sizes(job: psutil.Process) -> dict[str, float]:
    """Resident MB of the job's processes: the flow with its Dask scheduler, the server, and the workers."""
    found: dict[str, float] = {}
    try:
        found["flow and scheduler"] = job.memory_info().rss / 1e6
        for child in job.children():
            line = " ".join(child.cmdline())
            if "flows.server" in line:
                own = [child, *child.children(recursive=True)]
                found["Prefect server"] = sum(process.memory_info().rss for process in own) / 1e6
            elif "spawn_main" in line:
                found[f"worker {child.pid}"] = child.memory_info().rss / 1e6
    except psutil.NoSuchProcess:  # the job ends just now
        pass
    return found


def watched(job: Path, every: float, environment: dict[str, str]) -> tuple[Watch, float]:
    """Run a job to its end and watch it; returns the samples and the time of the end."""
    log, store = job.with_suffix(".log"), job.parent / "run"
    watch = Watch(store, time.time())
    command = [sys.executable, "-m", "flows.cli", "run", str(job)]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, env=os.environ | environment) as process:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(every)
            told = re.search(r"prefect (http://\S+)", log.read_text())
            ended = "contact sheet" in log.read_text()  # printed at the end, shortly before the server ends
            if told and (store / "done").is_dir() and not ended:
                watch.look(seen, told[1])
    if process.returncode:
        raise SystemExit(f"floodlit run ended with {process.returncode}:\n{log.read_text()}")
    return watch, time.time()


def bare_rate(job: Path) -> float:
    """Images per second of as many bare loops side by side as the job has workers."""
    each = read_job(job, Job)
    alone = {"mp_context": get_context("spawn"), "initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(WORKERS, **alone) as pool:
        seconds = list(pool.map(bare_loop, [each] * WORKERS))
    assert each.dataset.limit is not None
    return WORKERS * each.dataset.limit / max(seconds)


def slope(samples: list[tuple[float, int, float]], axis: int) -> float:
    """MB per second (axis 0) or per finished step (axis 1), by least squares."""
    across = np.array([sample[axis] for sample in samples], float)
    if np.ptp(across) == 0:
        return 0.0
    return float(np.polyfit(across, [sample[2] for sample in samples], 1)[0])


def write_jobs(folder: Path, real: Path, images: int, sample: int) -> tuple[Path, Path]:
    """Write the job, and the same job with ``sample`` images for the bare loops; returns both paths."""
    there = sorted((real / "images/cifar10").glob("*/*.png"))
    if not there:
        raise SystemExit(f"there are no images/cifar10/<class>/*.png in {real}; give their folder by --real")
    lines = ["file,label"]
    classes = sorted({path.parent.name for path in there})
    for again in range(-(-images // len(there))):
        (folder / f"{again:03d}").symlink_to(real / "images/cifar10")
        for path in there:
            file = f"{again:03d}/{path.parent.name}/{path.name}"
            lines.append(f"{file},{classes.index(path.parent.name)}")
    (folder / "listing.csv").write_text("\n".join(lines[: images + 1]))
    jobs = folder / "job.toml", folder / "sample.toml"
    for path, limit in zip(jobs, (images, min(sample, images)), strict=True):
        path.write_text(JOB.format(real=real, workers=WORKERS, limit=limit))
    return jobs


def main() -> None:
    """Run the bare loops and the job, and print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, default=os.environ.get("FLOODLIT_REAL"))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--sample", type=int, default=1600, help="images of each bare loop")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    asked = parser.parse_args()
    if asked.real is None:
        parser.error("give the folder of the network and the images by --real or FLOODLIT_REAL")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job, sample = write_jobs(folder, asked.real.absolute(), asked.images, asked.sample)
        before = bare_rate(sample)
        watch, ended = watched(job, asked.every, {"PREFECT_HOME": str(folder / "prefect")})
        bare = (before + bare_rate(sample)) / 2
        start_up, work, finish = phases(watch.store, watch.began, ended)
        print(
            f"{asked.images:,} images, {WORKERS} workers: {ended - watch.began:.0f} s, of which start-up "
            f"{start_up:.0f}, work {work:.0f}, finish {finish:.0f}"
        )
        database = (folder / "prefect/prefect.db").stat().st_size / 1e6
        print(f"Prefect's database: {database:.1f} MB")
        report(watch, asked.images / work, bare)


def report(watch: Watch, rate: float, bare: float) -> None:
    """Print the tables; ``rate`` and ``bare`` are images per second of the job and of the bare loops."""
    print(f"\n{'memory':<20} {'MB at most':>10} {'MB/hour':>9} {'MB/1,000 steps':>15} {'growth':>7}")
    for name, samples in watch.memory.items():
        working = [
            sample for sample in samples if sample[1] < samples[-1][1]
        ] or samples  # not yet at the summary
        warm = working[int(WARM_UP * len(working)) :]
        if len(warm) < 2:
            print(f"{name:<20} seen too briefly")
            continue
        hours = 3600 * slope(warm, 0)
        growth = slope(warm, 0) * (warm[-1][0] - warm[0][0]) / median(size for *_, size in warm)
        print(
            f"{name:<20} {max(size for *_, size in samples):10.0f} {hours:9.1f} "
            f"{1000 * slope(warm, 1):15.1f} {growth:7.1%}  {verdict(growth <= GROWTH)}"
        )
    print(f"\n{'the Prefect UI':<20} {'median s':>10} {'worst s':>9}")
    for page, seconds in watch.answers.items():
        worst = max(seconds)
        print(f"{page:<20} {median(seconds):10.3f} {worst:9.3f}  {verdict(worst < ANSWER)}")
    print(f"{'not answered':<20} {watch.refused:10}  {verdict(watch.refused == 0)}")
    print(f"\ntask runs           {watch.task_runs:10,}  {verdict(watch.task_runs < TASK_RUNS)}")
    print(f"images/s            {rate:10.1f}")
    print(f"images/s, bare loop {bare:10.1f}  ratio {rate / bare:.3f}  {verdict(rate / bare >= RATIO)}")


def verdict(reached: bool) -> str:
    """The word after a number that has an aim."""
    return "OK" if reached else "NOT"


if __name__ == "__main__":
    main()
