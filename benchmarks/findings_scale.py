"""Measures what looking for findings takes without interventions: suspicions and strategies of all classes.

    python -P benchmarks/findings_scale.py [--images 50000] [--classes 1000] [--grid 14]

The maps are random, with a bright place that a tenth of the classes share. Everything runs in one process, so
that a job with two workers takes about half of the time.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
sys.path.insert(0, str(Path(__file__).parents[1]))

from explainers.numerics.randomness import seed_of
from tasks.findings.examine import suspicions_of
from tasks.findings.off_object import suspected_classes
from tasks.findings.seen import Seen, pooled
from tasks.findings.strategies import strategies_of

SIZE = (224, 224)


def made(images: int, classes: int, grid: int) -> Seen:
    """Maps of so many images of so many classes, with a share on the object each."""
    rng = np.random.default_rng(0)
    raw = rng.random((images, grid, grid), dtype=np.float32) ** 8
    labels = np.arange(images) % classes
    raw[labels % 10 == 0, -1, 0] += 3
    return Seen(
        maps=pooled(torch.from_numpy(raw)),
        classes=labels,
        labels=labels,
        shares=rng.beta(5, 2, images),
        images=_nothing,
        objects=_nothing,
    )


def _nothing(rows: NDArray[np.int64]) -> Tensor:
    return torch.zeros(len(rows), *SIZE, dtype=torch.bool)


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at all classes, and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--grid", type=int, default=14)
    asked = parser.parse_args(arguments)
    seen = made(asked.images, asked.classes, asked.grid)
    start = time.perf_counter()
    off = suspected_classes(seen, np.arange(asked.classes))
    suspected = sum(len(suspicions_of(seen, each, SIZE, off.get(each))) for each in range(asked.classes))
    between = time.perf_counter()
    maps = seen.maps.numpy()
    clusters = sum(
        len(strategies_of(maps, seen.rows_of(each), seed_of(0, each)).clusters)
        for each in range(asked.classes)
    )
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{suspected} suspicions in {between - start:.1f} s, {clusters} clusters in {end - between:.1f} s")
    print(f"{asked.images:,} maps in {asked.classes:,} classes: {end - start:.1f} s")
    print(f"peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
