"""Measures what orchestration costs: a job through Floodlit against a bare loop in one process.

    python benchmarks/overhead.py [JOB.toml]

Both compute the same explainers and metrics on the same images with all cores: the job on Dask workers with
Prefect, Zarr, Parquet and checksums; the loop in this process, without storing anything. The program prints
the ratio of the two, from the start of the job's first task to the end of its last one. The job's start-up
and its finish (summary, contact sheet, MLflow) are printed separately.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The allocator settings of the workers, which must be set before the process starts. Without -P, the
# benchmark explainers.py beside this file would hide the package.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "68719476736"}
if not (ALLOCATOR.items() <= os.environ.items() and sys.flags.safe_path):
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], os.environ | ALLOCATOR)

import torch

from explainers.base import Batch, Need
from explainers.models.loading import load, preprocessing
from explainers.numerics.randomness import seed_of
from explainers.registry import explainers
from flows.job import Job
from flows.job_file import read_job
from storage.datasets.geometry import prepare_image
from storage.datasets.opening import open_dataset
from tasks.metrics.base import MetricBatch
from tasks.metrics.preparation import prepare
from tasks.metrics.registry import metrics

JOB = Path(__file__).with_name("overhead.toml")


def main() -> None:
    """Run the job and the loop, and print their times."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else JOB
    with tempfile.TemporaryDirectory() as folder:
        start_up, work, finish = orchestrated(path, Path(folder) / "run")
    bare = bare_loop(read_job(path, Job))
    print(f"bare loop          {bare:7.1f} s")
    print(f"orchestrated       {work:7.1f} s   ratio {work / bare:.2f}")
    print(f"start-up           {start_up:7.1f} s")
    print(f"finish             {finish:7.1f} s")


def orchestrated(path: Path, store: Path) -> tuple[float, float, float]:
    """Run the job with ``floodlit run``; returns the seconds of start-up, work and finish."""
    began = time.time()
    command = [sys.executable, "-m", "flows.cli", "run", str(path), "--store", str(store)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return phases(store, began, time.time())


def phases(store: Path, began: float, ended: float) -> tuple[float, float, float]:
    """The seconds of start-up, work and finish of a job.

    Parameters
    ----------
    store
        Its run folder.
    began, ended
        When the job's process started and ended, in seconds since the epoch.
    """
    records = list(store.glob("done/**/*.json"))
    first = min(file.stat().st_mtime - json.loads(file.read_text())["seconds"] for file in records)
    # Activations are deleted when a job is complete, which rewrites their records after the last task.
    last = max(file.stat().st_mtime for file in records if "activations" not in file.parts)
    return first - began, last - first, ended - last


def bare_loop(job: Job) -> float:
    """The seconds that the same work takes in one process that stores nothing, without loading the model."""
    dataset = open_dataset(job.dataset)
    how = preprocessing(job.model)
    pixels, _ = prepare_image(dataset.load(0), [], **how.geometry)
    classifier = load(job.model, input_size=(pixels.shape[1], pixels.shape[2]))
    methods = [explainers.get(name)(classifier, p) for name, p in job.explainer_parameters().items()]
    judges = [metrics.get(name)(classifier, p) for name, p in job.metric_parameters().items()]
    began = time.perf_counter()
    count = len(dataset.samples)
    for start in range(0, count, job.batch.images):
        rows = range(start, min(start + job.batch.images, count))
        prepared = [prepare_image(dataset.load(i), dataset.samples[i].boxes, **how.geometry) for i in rows]
        inputs = torch.stack([torch.from_numpy(image) for image, _ in prepared]).float() / 255
        boxes = [torch.tensor(own).reshape(-1, 4) for _, own in prepared]
        seeds = torch.tensor([seed_of(job.seed, dataset.samples[i].sample_id) for i in rows])
        with torch.inference_mode():
            features = classifier.activations(inputs)
            confidence, targets = classifier.probability(classifier.head(features)).max(1)
        for method in methods:
            needed = features if Need.ACTIVATIONS in method.needs else None
            explanation = method.explain(Batch(inputs, targets, seeds, needed, job.batch.forwards))
            maps, _ = prepare(explanation.maps, classifier.input_size)
            scored = MetricBatch(inputs, targets, seeds, confidence, boxes, job.batch.forwards)
            for judge in judges:
                judge.score(scored, maps)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
