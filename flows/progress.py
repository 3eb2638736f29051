"""How far a job is, stage by stage: Prefect's progress artifacts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from storage.records import STAGES, Step
from storage.run import Run

SECONDS = 2.0  # between two updates
ALL = "all"


class StageProgress:
    """Progress of the whole job, ``floodlit-progress``, and of each stage, ``floodlit-progress-inputs``, ...

    Parameters
    ----------
    run, todo
        The run, and those of its steps that are still to do: the rest counts as done.
    """

    def __init__(self, run: Run, todo: Iterable[Step]) -> None:
        each = {"inputs": 1, "activations": 1, "saliency": len(run.explainers), "scores": len(run.explainers)}
        self._totals = {stage: run.shards * each[stage] for stage in STAGES}
        self._totals[ALL] = sum(self._totals.values())
        self._left = Counter(step.stage for step in todo)
        self._left[ALL] = self._left.total()
        self._made: dict[str, UUID] = {}
        for name, total in self._totals.items():
            about = f"{total} steps of {run.root}" if name == ALL else f"{name}: {total} steps of {run.root}"
            key = "floodlit-progress" if name == ALL else f"floodlit-progress-{name}"
            made = create_progress_artifact(progress=self._percent(name), key=key, description=about)
            assert isinstance(made, UUID)
            self._made[name] = made
        self._told, self._news = time.monotonic(), set[str]()

    @property
    def total(self) -> int:
        """Steps of the job."""
        return self._totals[ALL]

    def advance(self, step: Step) -> None:
        """One more step has ended."""
        for name in (step.stage, ALL):
            self._left[name] -= 1
            self._news.add(name)
        if time.monotonic() - self._told > SECONDS:
            self.tell()

    def tell(self) -> None:
        """Update the artifacts that changed."""
        self._told = time.monotonic()
        while self._news:
            name = self._news.pop()
            update_progress_artifact(self._made[name], progress=self._percent(name))

    def _percent(self, name: str) -> float:
        return 100 * (1 - self._left[name] / self._totals[name])
