"""Measures what the summary of a large run costs: time and memory for the scores of many images.

    python -P benchmarks/summary.py [--images 50000] [--explainers 4]

The program prints the seconds, the peak memory of the process, and the time divided by that of reading the
same Parquet files.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow.parquet as pq

from storage.manifest import ExplainerEntry, Manifest, MetricEntry
from storage.run import Run
from storage.scores import write_scores
from tasks.results.summary import mean_curves, summarise

SHARD = 5000  # images
COLUMNS = {
    "insertion": "higher",
    "deletion": "lower",
    "pointing_game": "higher",
    "sparseness": "higher",
    "max_box_acc_v2": "higher",
}
CURVES = {"insertion": 29, "deletion": 29, "max_box_acc_v2": 300}  # points per curve
# Columns that have another name than their metric. These are the pooled ones.
METRICS = {"max_box_acc_v2": "max_box_accuracy"}


def main() -> None:
    """Make a run, summarise it, and print times and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--explainers", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = synthetic(Path(folder) / "run", asked.images, asked.explainers)
        before = memory()
        start = time.perf_counter()
        rows = sum(pq.ParquetFile(path).read().num_rows for path in run.root.glob("scores/*/*.parquet"))
        read = time.perf_counter() - start
        start = time.perf_counter()
        summarise(run)
        mean_curves(run)
        taken = time.perf_counter() - start
        print(f"{asked.images:,} images, {asked.explainers} explainers: {rows:,} rows")
        print(f"reading     {read:6.2f} s, {before:,.0f} MB before it")
        print(f"summarising {taken:6.2f} s, {taken / read:.1f} times as long; {memory():,.0f} MB at most")


def synthetic(root: Path, images: int, explainers: int) -> Run:
    """Create a run with random scores and nothing else."""
    names = [f"explainer{i}" for i in range(explainers)]
    about = {"low": 0.0, "high": 1.0, "fill": None}
    columns = {
        name: {"name": name, "better": better, "pooled": "curve" if name in METRICS else None} | about
        for name, better in COLUMNS.items()
    }
    manifest = Manifest(
        job={"name": "synthetic", "seed": 0},
        identity={},
        versions={},
        model_fingerprint="",
        dataset_fingerprint="",
        rows=images,
        shard_rows=SHARD,
        input_shape=(3, 8, 8),
        explainers={name: ExplainerEntry(parameters={}, grid=(1, 1)) for name in names},
        metrics={
            METRICS.get(name, name): MetricEntry(parameters={}, columns={name: columns[name]})
            for name in columns
        },
    )
    run = Run.create_or_open(root, manifest)
    rng = np.random.default_rng(0)
    for name in names:
        for shard in range(run.shards):
            start, stop = run.bounds(shard)
            write_scores(root, name, shard, scores(rng, start, stop))
    return run


def scores(rng: np.random.Generator, start: int, stop: int) -> dict[str, list]:
    """The columns of the score file for images ``start`` to ``stop`` - 1."""
    count = stop - start
    tidy: dict[str, list] = {"metric": [], "value": [], "curve": []}
    for name in COLUMNS:
        values = np.full(count, np.nan) if name in METRICS else rng.random(count)
        tidy["metric"] += [name] * count
        tidy["value"] += [None if np.isnan(value) else value for value in values.tolist()]
        curves = rng.random((count, CURVES[name]), np.float32) if name in CURVES else [None] * count
        tidy["curve"] += list(curves)
    return tidy | {
        "sample_id": [f"{i:08d}" for i in range(start, stop)] * len(COLUMNS),
        "target": [0] * count * len(COLUMNS),
        "status": ["ok"] * count * len(COLUMNS),
        "forward_passes": [None] * count * len(COLUMNS),
    }


def memory() -> float:
    """The peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
