"""Measures for which image classifiers Floodlit finds the layer itself, and checks what it finds.

    python benchmarks/models.py [--out benchmarks/models.csv] [--jobs 2] [--sources timm open_clip]
        [--only 'resnet*'] [--small] [--all-timm] [--seconds 600] [--memory 6] [--device cuda]
    python benchmarks/models.py --table docs/models.md    # write the page from the file, and sweep nothing

Every network has random weights, and the job names no layer. Swept are all classifiers of torchvision, the
smallest model of every module of timm (with ``--all-timm`` all of its models below 60 million parameters),
the kinds of image towers of open_clip, and the image classifiers of Hugging Face in small configurations.

Each model runs in a process of its own, with a limit of time and of memory, and adds one row to the file.
Models that are in the file already are left out, so an interrupted sweep can be resumed, and a model is
measured again when its row is deleted. A row says

- "works", if the network is accepted and passes checks that are written apart from Floodlit's own probes: the
  head gives the network's logits on other inputs and other numbers of inputs, every cell of the grid reaches
  the logits, the change on the grid follows a patch, maps are those of a layer named by hand where one is
  known, and tokens and attention matrices, where they can be had, give the network's logits;
- "refused", if Floodlit refuses it in one line; "wrong", if it is accepted and fails a check; "unclear", if
  random weights hide where the cells lie;
- "failed", if something else went wrong: another error, or a limit that was reached.

With ``--small``, networks that take inputs of any size get at most 224 pixels a side.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import psutil

from sweep.listed import SOURCES, Entry, entries
from sweep.page import STATES, page, read

OUT = Path(__file__).parent / "models.csv"
COUNTED = Path(__file__).parent / "timm_parameters.csv"
# The children are copies of a process that has imported these.
PRELOADED = ["torch", "torchvision", "timm", "open_clip", "transformers", "sweep.examined"]
# One thread per child, and no question to a hub: all weights are random.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PASSES, SECONDS = 25, 5.0  # finding a layer costs at most so many passes of one image, or so long


@dataclass
class Running:
    """A model that is being examined."""

    entry: Entry
    process: BaseProcess
    answer: Connection
    started: float


def child(entry: Entry, device: str, answer: Connection) -> None:
    """Examine one model and send its row; what it prints is dropped."""
    from sweep.examined import examine

    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    answer.send(examine(entry, device))


def rows(waiting: list[Entry], asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The row of every model, in the order in which they end."""
    os.environ.update(ENVIRONMENT)
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running: list[Running] = []
    while waiting or running:
        while waiting and len(running) < asked.jobs:
            entry = waiting.pop(0)
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(entry, asked.device, sending))
            process.start()
            sending.close()
            running.append(Running(entry, process, receiving, time.monotonic()))
        time.sleep(0.05)
        for each in list(running):
            row = ended(each, asked)
            if row is not None:
                running.remove(each)
                yield row


def ended(model: Running, asked: argparse.Namespace) -> dict[str, Any] | None:
    """The row of a model whose process has ended or reached a limit, which is then killed; None before."""
    row: dict[str, Any] | None = None
    failed = {"source": model.entry.source, "name": model.entry.name, "family": model.entry.family}
    failed |= {"status": "failed", "listed": "yes" if model.entry.listed else "no"}
    if model.answer.poll():
        try:
            row = model.answer.recv()
        except EOFError:
            model.process.join()
            row = failed | {"reason": f"the process ended with exit code {model.process.exitcode}"}
    elif time.monotonic() - model.started > asked.seconds:
        row = failed | {"reason": f"it took more than {asked.seconds:g} s"}
    elif memory(model.process) > asked.memory:
        row = failed | {"reason": f"it took more than {asked.memory:g} GB"}
    if row is not None:
        model.process.kill()
        model.process.join()
        model.answer.close()
    return row


def memory(process: BaseProcess) -> float:
    """The resident memory of a process in GB; 0 if it has ended."""
    try:
        return float(psutil.Process(process.pid).memory_info().rss) / 1e9
    except psutil.NoSuchProcess:
        return 0.0


def sweep(asked: argparse.Namespace) -> None:
    """Examine every model that is asked for and not in the file, and add its row there."""
    from sweep.examined import COLUMNS

    known = {(row["source"], row["name"]) for row in read(asked.out)} if asked.out.exists() else set()
    listed = [
        each
        for each in entries(asked.sources, asked.small, asked.all_timm, COUNTED)
        if (asked.only is None or any(fnmatch(each.name, pattern) for pattern in asked.only))
        and (each.source, each.name) not in known
    ]
    with asked.out.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        if stream.tell() == 0:
            writer.writeheader()
        for number, row in enumerate(rows(list(listed), asked), 1):
            writer.writerow(row)
            stream.flush()
            told = row["reason"] or row["layer"]
            print(
                f"{number}/{len(listed)} {row['source']} {row['name']}: {row['status']}, {told}", flush=True
            )


def totals() -> Counter[str]:
    """How many models of each source a sweep has that nothing was asked of."""
    return Counter(each.source for each in entries(SOURCES, False, False, COUNTED))


def report(found: list[dict[str, str]]) -> None:
    """Print how many models work, by source, and every one that does not."""
    for row in found:
        if row["status"] != "works":
            print(f"{row['status']:8} {row['source']} {row['name']}: {row['reason']}")
    for source in SOURCES:
        counts = Counter(row["status"] for row in found if row["source"] == source)
        told = ", ".join(f"{status} {counts[status]}" for status in STATES)
        print(f"{source:12} {told}, of {counts.total()}")
    dear = [
        row
        for row in found
        if row["passes_to_find"]
        and int(row["passes_to_find"]) > PASSES
        and float(row["seconds_to_find"]) > SECONDS
    ]
    print(f"finding the layer took more than {PASSES} passes and {SECONDS:g} s for {len(dear)} models")
    for row in dear:
        print(f"  {row['name']}: {row['passes_to_find']} passes, {row['seconds_to_find']} s")


def main(arguments: list[str] | None = None) -> None:
    """Sweep the models, or write the page of those that were swept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the file of rows")
    parser.add_argument("--table", type=Path, help="write this page from the file of rows, and sweep nothing")
    parser.add_argument("--jobs", type=int, default=1, help="models that are examined at a time")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--only", nargs="+", help="patterns of names, such as 'resnet*'")
    parser.add_argument("--small", action="store_true", help="small inputs where a network takes them")
    parser.add_argument("--all-timm", action="store_true", help="all timm models below 60 M parameters")
    parser.add_argument("--seconds", type=float, default=600, help="limit per model")
    parser.add_argument("--memory", type=float, default=6, help="limit per model in GB")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(arguments)
    if asked.table is None:
        sweep(asked)
        report(read(asked.out))
    else:
        asked.table.write_text(page(read(asked.out), totals()), encoding="utf-8")


if __name__ == "__main__":
    main()
