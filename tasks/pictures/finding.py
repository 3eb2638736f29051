"""Finds a sample of a run by its id, for a picture of it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from storage.records import Step
from storage.run import Run
from storage.samples import read_sample_inputs, read_samples_of_shard

CLOSE = 3  # samples that an error names


def found(run: Run, sample_id: str, explainers: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """The index of a sample in the run, and its row of the samples.

    Raises
    ------
    ValueError
        In one line: the sample does not exist, could not be read, has no target, or has no map of one of the
        explainers.
    """
    done = run.finished()
    shard, place = _located(run, sample_id, [s for s in range(run.shards) if Step("inputs", s) in done])
    decoded = read_sample_inputs(run.root, shard)[place]
    if decoded["status"] != "ok":
        raise ValueError(f"the image of {sample_id} could not be read: {decoded['error']}")
    for name in explainers:
        if Step("saliency", shard, name) not in done:
            raise ValueError(
                f"{sample_id} has no map of {name} yet: its shard {shard + 1}/{run.shards} is not done; run "
                f"the job again to continue"
            )
    sample = read_samples_of_shard(run.root, shard)[place]
    if sample["target"] is None:
        raise ValueError(f"{sample_id} has no target: {sample['error'] or 'it has no label'}")
    return run.bounds(shard)[0] + place, sample


def _located(run: Run, sample_id: str, shards: list[int]) -> tuple[int, int]:
    """The shard of a sample, and its index in that shard."""
    known: list[str] = []
    for shard in shards:
        ids = [sample["sample_id"] for sample in read_sample_inputs(run.root, shard)]
        if sample_id in ids:
            return shard, ids.index(sample_id)
        known += ids
    if not known:
        raise ValueError(f"{run.root} has no samples yet; run the job again to continue")
    close = difflib.get_close_matches(sample_id, known, CLOSE) or known[:CLOSE]
    missing = f" among the {len(known)} of {run.rows} listed so far" if len(known) < run.rows else ""
    raise ValueError(f"{run.root} has no sample {sample_id!r}{missing}; there are {', '.join(close)}")
