"""Measures what a million images cost besides the work: opening, planning, resuming, status, queries.

    python -P benchmarks/million.py [--rows 1000000] [--shard 4096]

The images do not exist: a listing names them, and the files of the run hold synthetic rows. Each step runs in
a process of its own, so that its peak memory is known. The program prints the seconds of each step, after the
imports, and the peak memory of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import pyarrow as pa
import typer

from flows.inspect_commands import status
from flows.plan import Done, pending_steps
from flows.resume import remaining
from made_runs import finished_run
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.parquet import read_table, write_table
from storage.query import query
from storage.records import Step
from storage.run import Run
from storage.samples import merge_samples, write_sample_inputs, write_sample_predictions
from storage.scores import write_scores
from storage.verify import verify

EXPLAINERS = {"cheap": True, "dear": False}  # whether they read activations
CLASSES = 1000
QUERIES = {
    "query of a mean": "SELECT explainer, metric, avg(value) FROM scores GROUP BY ALL",
    "query of both tables": "SELECT label, avg(value) FROM scores JOIN samples USING (sample_id) GROUP BY 1",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the listing and the run, then measure each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=4096, help="images of a shard")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.step:
        print(json.dumps(measured(steps(asked.folder, asked.rows, asked.shard)[asked.step])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        listing(folder / "listing.csv", asked.rows)
        sizes = {"rows": asked.rows, "shard_rows": asked.shard, "input_shape": (3, 2, 2)}
        finished_run(folder / "run", EXPLAINERS, {"value": "higher"}, (1, 1), write_step, **sizes)
        print(f"{asked.rows:,} images in shards of {asked.shard:,}")
        print(f"{'':<28} {'seconds':>8} {'CPU':>8} {'MB':>6}")
        how = ["--folder", str(folder), "--rows", str(asked.rows), "--shard", str(asked.shard)]
        for name in steps(folder, asked.rows, asked.shard):
            command = [sys.executable, "-P", __file__, "--step", name, *how]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, busy, peak = json.loads(told.stdout.splitlines()[-1])
            print(f"{name:<28} {seconds:8.2f} {busy:8.2f} {peak:6.0f}")


def steps(folder: Path, rows: int, shard: int) -> dict[str, Callable[[], Any]]:
    """The steps by name."""
    root = folder / "run"
    spec = {"kind": "csv", "path": str(folder / "listing.csv")}
    shards = -(-rows // shard)
    return {
        "imports alone": lambda: None,
        "opening a listing": lambda: open_dataset(DatasetSpec.model_validate(spec)),
        "its fingerprint": lambda: open_dataset(DatasetSpec.model_validate(spec)).fingerprint,
        "planning": lambda: pending_steps(shards, EXPLAINERS, set(), Done()),
        "merging samples": lambda: merge_samples(root, shards),
        "resuming: checking the run": lambda: expect(not verify(root)),
        "resuming: what is left": lambda: expect(not remaining(Run.open(root))),
        "status": lambda: shown(root),
        **{name: lambda sql=sql: expect(query(root, sql).num_rows) for name, sql in QUERIES.items()},
    }


def expect(right: Any) -> None:
    """End the program if a step did not do what it should."""
    if not right:
        raise SystemExit("a step gave another result than it should")


def shown(root: Path) -> None:
    """Show the status of the run, into nothing."""
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), suppress(typer.Exit):
        status(root)


def measured(step: Callable[[], Any]) -> tuple[float, float, float]:
    """The seconds of a step, those of CPU time, and the peak memory of this process in MB."""
    began, busy = time.perf_counter(), time.process_time()
    step()
    spent = time.perf_counter() - began, time.process_time() - busy
    return *spent, peak()


def peak() -> float:
    """The peak memory of this process in MB."""
    about = Path("/proc/self/status")
    if about.exists():  # Linux counts in ru_maxrss what the process that started this one had
        return int(re.findall(r"VmHWM:\s+(\d+) kB", about.read_text())[0]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def listing(path: Path, rows: int) -> None:
    """Write a listing with labels; the images do not exist, and opening does not look into them."""
    with path.open("w") as file:
        file.write("file,label\n")
        file.writelines(f"{uri(i)},{i % CLASSES}\n" for i in range(rows))


def uri(image: int) -> str:
    """The name of an image."""
    return f"n{image % CLASSES:08d}/image_{image:08d}.JPEG"


def write_step(run: Run, step: Step) -> None:
    """Write the table of a step, if it has one, and arrays that hold nothing."""
    write_rows(run, step, range(*run.bounds(step.shard)))
    for file in (run.root / name for name in run.layout.files_of(step)):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(str(step).encode())


def write_rows(run: Run, step: Step, images: range) -> None:
    """Write the table of a step, if it has one."""
    ids = [uri(image) for image in images]
    if step.stage == "inputs":
        known = {"sample_id": ids, "uri": [f"/data/{name}" for name in ids], "status": ["ok"] * len(ids)}
        known |= {"label": [i % CLASSES for i in images], "labels": [[i % CLASSES] for i in images]}
        sides = dict.fromkeys(("width", "height"), [224] * len(ids))
        typed(write_sample_inputs, run, step, {**known, **sides, "boxes": [[]] * len(ids)})
    elif step.stage == "activations":
        known = {
            "sample_id": ids,
            "prediction": [i % CLASSES for i in images],
            "confidence": [0.5] * len(ids),
        }
        own = {"target": known["prediction"], "targets": [[i % CLASSES] for i in images]}
        typed(write_sample_predictions, run, step, {**known, **own, "probabilities": [[0.5]] * len(ids)})
    elif step.stage == "scores":
        tidy: dict[str, list[Any]] = {"sample_id": ids, "metric": ["value"] * len(ids)}
        tidy |= {"value": [i % 97 / 97 for i in images], "curve": [None] * len(ids)}
        tidy |= {"target": [i % CLASSES for i in images], "status": ["ok"] * len(ids)}
        write_scores(run.root, step.explainer, step.shard, tidy | {"forward_passes": [None] * len(ids)})


def typed(write: Callable[..., Path], run: Run, step: Step, columns: dict[str, list[Any]]) -> None:
    """Write columns as the run writes rows: a first row of its own shows which columns there are."""
    path = write(run.root, step.shard, [{name: cells[0] for name, cells in columns.items()}])
    schema = read_table(path).schema
    lacking = {name: [None] * len(columns["sample_id"]) for name in schema.names if name not in columns}
    write_table(pa.table(columns | lacking, schema=schema), path)


if __name__ == "__main__":
    main()
