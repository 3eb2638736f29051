"""Whether several runs can stand beside each other, and what to call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from storage.run import Run
from storage.samples import each_sample


def names_of(runs: Sequence[Run]) -> list[str]:
    """Distinct names for the runs: the names of their jobs, or of their folders if jobs share a name."""
    for names in (
        [run.name for run in runs],
        [run.root.name for run in runs],
        [str(run.root) for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    twice = next(root for root, count in Counter(run.root for run in runs).items() if count > 1)
    raise ValueError(f"{twice} is named twice; name every run once")


def check_same_images(runs: Sequence[Run], names: Sequence[str], common: set[str]) -> None:
    """Refuse different images under one name, such as those that the demo draws with different seeds."""
    if len({run.manifest.dataset_fingerprint for run in runs}) == 1:
        return
    facts: dict[str, Any] = {}
    keys = ["label", "width", "height", "text"]
    for run, name in zip(runs, names, strict=True):
        for sample in each_sample(run.root, ["sample_id", *keys]):
            own = [sample[key] for key in keys]
            if sample["sample_id"] in common and facts.setdefault(sample["sample_id"], own) != own:
                raise ValueError(
                    f"{sample['sample_id']} is not the same image in {name} and {names[0]}; compare runs of "
                    "one dataset"
                )
