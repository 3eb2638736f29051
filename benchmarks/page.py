"""Measures the report of a run: how long it takes to write, and how large it is.

    python -P benchmarks/page.py [--rows 1000] [--explainers 10] [--run FOLDER]

The run is the synthetic one of ``benchmarks/browser.py``: every shard holds the same pictures and maps, and
scores are random. The program makes the report twice and prints the seconds, those of the processor, and the
megabytes, beside the limits. The first time includes what a process does once, such as starting the engine of
the charts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from browser import synthetic

from storage.run import Run
from tasks.page.report import report_of
from tasks.results.costs import write_costs
from tasks.results.summary import summarise

SECONDS, MEGABYTES = 5.0, 10.0  # limits for 1,000 images


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the run, write its report twice and print what that takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--explainers", type=int, default=10)
    parser.add_argument("--run", type=Path, help="a finished run instead of a synthetic one")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.run or Path(temporary, "run")
        if asked.run is None:
            synthetic(root, asked.rows, [f"explainer{i}" for i in range(asked.explainers)])
            summarise(Run.open(root))
            write_costs(Run.open(root))
        measure(root)


def measure(root: Path) -> None:
    """Make the report of a run twice, and print what that takes."""
    run = Run.open(root)
    print(f"{run.rows:,} inputs, {len(run.explainers)} explainers")
    print(f"{'':<8}{'seconds':>9}{'of processor':>14}{'MB':>7}")
    for name in ("first", "again"):
        began, busy = time.perf_counter(), time.process_time()
        size = len(report_of(run).encode()) / 1e6
        took = time.perf_counter() - began, time.process_time() - busy
        print(f"{name:<8}{took[0]:9.1f}{took[1]:14.1f}{size:7.1f}")
    print(f"{'limit':<8}{SECONDS:9.1f}{'':14}{MEGABYTES:7.1f}")


if __name__ == "__main__":
    main()
