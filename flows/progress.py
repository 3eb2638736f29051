"""Progress of a job, stage by stage, as Prefect's progress artifacts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from storage.records import STAGES, SUSPICIONS, Step
from storage.run import Run
from tasks.markdown import code

SECONDS = 2.0  # between two updates, so that the server does not get a request for every step
ALL = "all"


class StageProgress:
    """Progress artifacts of a flow run: one for the whole job and one per stage.

    The artifact of the job has the key ``floodlit-progress``; those of the stages have
    ``floodlit-progress-inputs`` and so on.

    Parameters
    ----------
    run
        The run.
    todo
        The steps of the run that are still to do; all others count as done.
    """

    def __init__(self, run: Run, todo: Iterable[Step]) -> None:
        each = {"inputs": 1, "activations": 1, "saliency": len(run.explainers), "scores": len(run.explainers)}
        self._totals = {stage: run.shards * each[stage] for stage in STAGES}
        if run.manifest.findings:
            self._totals[SUSPICIONS] = run.layout.parts * len(run.manifest.findings)
        self._totals[ALL] = sum(self._totals.values())
        self._left = Counter(step.stage for step in todo)
        self._left[ALL] = self._left.total()
        self._made: dict[str, UUID] = {}
        for name, total in self._totals.items():
            about = ("" if name == ALL else f"{name}: ") + f"{total} steps of {code(run.root)}"
            key = "floodlit-progress" if name == ALL else f"floodlit-progress-{name}"
            made = create_progress_artifact(progress=self._percent(name), key=key, description=about)
            assert isinstance(made, UUID)
            self._made[name] = made
        self._told, self._news = time.monotonic(), set[str]()

    @property
    def total(self) -> int:
        """Number of steps of the whole job."""
        return self._totals[ALL]

    def left(self, stage: str) -> int:
        """Number of steps of a stage that have not ended."""
        return self._left[stage]

    def advance(self, step: Step) -> None:
        """Count one more step as ended, and update the artifacts if the last update is old enough."""
        for name in (step.stage, ALL):
            self._left[name] -= 1
            self._news.add(name)
        if time.monotonic() - self._told > SECONDS:
            self.tell()

    def tell(self) -> None:
        """Update the artifacts that have changed."""
        self._told = time.monotonic()
        while self._news:
            name = self._news.pop()
            update_progress_artifact(self._made[name], progress=self._percent(name))

    def _percent(self, name: str) -> float:
        """Share of the steps of a stage, or of all stages, that have ended, in percent."""
        return 100 * (1 - self._left[name] / self._totals[name])
