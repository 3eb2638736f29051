"""Finished runs of synthetic rows, for benchmarks of what reads large runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.plan import Done, pending_steps
from storage.manifest import ExplainerEntry, Manifest, MetricEntry
from storage.parquet import write_table
from storage.records import SUMMARY, StageFacts, Step, write_record
from storage.run import Run
from storage.samples import merge_samples


def finished_run(
    root: Path,
    explainers: Mapping[str, bool],
    better: Mapping[str, str],
    grid: tuple[int, int],
    write: Callable[[Run, Step], None],
    **sizes: Any,
) -> None:
    """Make a run in which every step is done and signed by its record; the tables of results are empty.

    Parameters
    ----------
    explainers
        By name, whether they read activations.
    better
        The metrics, each with the direction of its one column.
    grid
        The grid of all maps.
    write
        Writes the files of a step.
    sizes
        ``rows``, ``shard_rows`` and ``input_shape`` of the run.
    """
    columns = {name: {"name": name, "better": told, "low": 0.0, "high": 1.0} for name, told in better.items()}
    job = {"name": root.name, "seed": 0, "target": "predicted", "tolerance": 0}
    job |= {"dataset": {"kind": "synthetic"}, "model": {"source": "none"}}
    manifest = Manifest(
        job=job | {"batch": {"images": 16, "forwards": 64}},
        identity={},
        versions={},
        model_fingerprint="",
        dataset_fingerprint="",
        explainers={name: ExplainerEntry(parameters={}, grid=grid) for name in explainers},
        metrics={name: MetricEntry(parameters={}, columns={name: columns[name]}) for name in better},
        **sizes,
    )
    run = Run.create_or_open(root, manifest)
    for step in pending_steps(run.shards, explainers, set(), Done()):
        write(run, step)
        start, stop = run.bounds(step.shard)
        files = [root / name for name in sorted(run.layout.files_of(step)) if (root / name).exists()]
        facts = StageFacts(metrics=tuple(better), cached=False)
        told = {"rows": stop - start, "statuses": {"ok": stop - start}, "seconds": 1.0, "worker": ""}
        write_record(root, step, files=files, facts=facts, **told)
    merge_samples(root, run.shards)
    tables = [run.samples, run.summary, run.comparisons, run.costs]
    nothing = pa.table({name: pa.array([], pa.string()) for name in ("explainer", "metric", "reason")})
    for table in tables[1:]:
        write_table(nothing, table)
    facts = StageFacts(explainers=tuple(explainers))
    write_record(root, SUMMARY, rows=run.rows, statuses={}, files=tables, seconds=0.0, worker="", facts=facts)
