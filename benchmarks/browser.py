"""Measures the browser on a large run: its start, its memory, and how long its pages take.

    python -P benchmarks/browser.py [--rows 50000] [--explainers 10] [--requests 200] [--run FOLDER]

The run is made of synthetic rows: every shard holds the same pictures and maps, and scores are random. The
program starts ``floodlit browse`` on it, waits for the first page, and asks for pages one after the other:
searches with filters and orders, samples, and pictures. It prints the median and the 95th percentile of each
kind in milliseconds, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import httpx
import numpy as np

from made_runs import finished_run
from storage import maps
from storage.records import Step
from storage.run import Run
from storage.samples import write_sample_inputs, write_sample_predictions
from storage.scores import write_scores

SHARD, SIZE, GRID, CLASSES = 512, 224, 14, 1000
METRICS = ("insertion", "deletion", "pointing_game", "sparseness")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the run, start the browser on it and ask it for pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--explainers", type=int, default=10)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--run", type=Path, help="a finished run instead of a synthetic one")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.run or Path(temporary, "run")
        if asked.run is None:
            synthetic(root, asked.rows, [f"explainer{i}" for i in range(asked.explainers)])
        measure(root, asked.requests)


def measure(root: Path, requests: int) -> None:
    """Start the browser on a run, ask for pages, and print how long they took."""
    command = [sys.executable, "-P", "-m", "flows.cli", "browse", str(root), "--no-open"]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=where) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        try:
            with httpx.Client(base_url=address, timeout=60) as client:
                while not answers(client):
                    time.sleep(0.02)
                print(f"start to the first page: {time.perf_counter() - began:.1f} s")
                asked = addresses(Run.open(root), requests)
                took: dict[str, list[float]] = {}
                for kind, to in asked:
                    took.setdefault(kind, []).append(spent(client, to))
            status = Path(f"/proc/{process.pid}/status")
            if status.exists():
                peak = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]
                print(f"peak memory: {int(peak) / 1000:.0f} MB")
        finally:
            process.terminate()
    took["all"] = [one for times in took.values() for one in times]
    print(f"{'':<10} {'requests':>8} {'median ms':>10} {'95 % within ms':>15}")
    for kind, times in took.items():
        print(f"{kind:<10} {len(times):8} {np.median(times):10.0f} {np.percentile(times, 95):15.0f}")


def answers(client: httpx.Client) -> bool:
    """Whether the server gives its first page."""
    try:
        return client.get("").status_code == 200
    except httpx.ConnectError:
        return False


def spent(client: httpx.Client, to: str) -> float:
    """The milliseconds that one request takes."""
    began = time.perf_counter()
    answer = client.get(to)
    answer.raise_for_status()
    return 1000 * (time.perf_counter() - began)


def addresses(run: Run, count: int) -> list[tuple[str, str]]:
    """Random pages: their kind and address."""
    random = np.random.default_rng(0)
    names, columns = list(run.explainers), list(run.columns)
    found = []
    for i in range(count):
        row = int(random.integers(run.rows))
        one, other = (names[int(random.integers(len(names)))] for _ in range(2))
        score = f"{one}.{columns[int(random.integers(len(columns)))]}"
        match i % 4:
            case 0:
                search = {"sort": score, "map": one} | ({"descending": "1"} if i % 16 > 7 else {})
                search |= {"correct": "0"} if i % 8 else {"where": f"confidence > {random.random():.2f}"}
                found.append(("search", "?" + urlencode(search)))
            case 1:
                search = {"sort": f"{score} - {other}.{columns[0]}", "score": score, "low": "0.3"}
                found.append(("search", "?" + urlencode(search)))
            case 2:
                found.append(("sample", f"sample/{row}?" + urlencode({"sort": score})))
            case _:
                found.append(("picture", f"map/{one}/{row}.png" if i % 8 == 3 else f"input/{row}.webp"))
    return found


def synthetic(root: Path, rows: int, names: list[str]) -> None:
    """Make a finished run of ``rows`` images and these explainers."""
    better = {name: "lower" if name == "deletion" else "higher" for name in METRICS}
    sizes = {"rows": rows, "shard_rows": SHARD, "input_shape": (3, SIZE, SIZE)}
    finished_run(root, dict.fromkeys(names, False), better, (GRID, GRID), write_step, **sizes)


def write_step(run: Run, step: Step) -> None:
    """Write the table and the arrays of a step."""
    write_tables(run, step.stage, step.shard, step.explainer)
    write_arrays(run, step.stage, step.shard, step.explainer)


def write_tables(run: Run, stage: str, shard: int, explainer: str) -> None:
    """Write the table of a step, if it has one."""
    start, stop = run.bounds(shard)
    ids = [f"image_{image:08d}.jpg" for image in range(start, stop)]
    random = np.random.default_rng([shard, len(explainer), sum(explainer.encode())])
    if stage == "inputs":
        known = {"sample_id": ids, "uri": ids, "status": ["ok"] * len(ids), "boxes": [[]] * len(ids)}
        known |= {"label": [i % CLASSES for i in range(start, stop)], "width": [SIZE] * len(ids)}
        write_sample_inputs(run.root, shard, rows_of(known | {"height": [SIZE] * len(ids)}))
    elif stage == "activations":
        predictions = [i % CLASSES if i % 5 else 0 for i in range(start, stop)]
        known = {"sample_id": ids, "prediction": predictions, "confidence": random.random(len(ids)).tolist()}
        known |= {"target": predictions, "targets": [[p] for p in predictions]}
        write_sample_predictions(run.root, shard, rows_of(known))
    elif stage == "scores":
        every = len(ids) * len(METRICS)
        tidy = {
            "sample_id": ids * len(METRICS),
            "target": [0] * every,
            "metric": [name for name in METRICS for _ in ids],
            "value": random.random(every).tolist(),
            "curve": [
                random.random(28).tolist() if name in METRICS[:2] else None for name in METRICS for _ in ids
            ],
            "status": ["ok"] * every,
            "forward_passes": [None] * every,
        }
        write_scores(run.root, explainer, shard, tidy)


def rows_of(columns: dict[str, list[object]]) -> list[dict[str, object]]:
    """The rows of a table given by its columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_arrays(run: Run, stage: str, shard: int, explainer: str) -> None:
    """Write the arrays of a step: full shards hold the same, so they are links to the first one."""
    start, stop = run.bounds(shard)
    random = np.random.default_rng(1)
    made = {}
    if stage == "inputs":
        coarse = random.integers(0, 256, (stop - start, 3, 7, 7), dtype=np.uint8)
        made[run.inputs] = lambda: coarse.repeat(SIZE // 7, 2).repeat(SIZE // 7, 3)
    elif stage == "saliency":
        saliency = run.saliency(explainer)
        made[saliency / "maps"] = lambda: random.random((stop - start, GRID, GRID), dtype=np.float32)
        made[saliency / "status"] = lambda: np.zeros(stop - start, np.int8)
    for path, values in made.items():
        layout = run.layout.arrays[path.relative_to(run.root).as_posix()]
        name = path.relative_to(run.root).as_posix()
        first, own = (run.root / layout.shard(name, number) for number in (0, shard))
        if shard and stop - start == SHARD:
            own.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, own)
        else:
            maps.write_shard(path, start, values())


if __name__ == "__main__":
    main()
