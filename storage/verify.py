"""Checks that the files still have the content that the done-records describe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.files import sha256_of_file
from storage.records import CoveredFile, DamagedRecordError, Step, drop_record, finished, read_record


@dataclass(frozen=True)
class Problem:
    """A step whose record or files are damaged; ``path`` is relative to the run folder."""

    step: Step
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def verify(root: Path) -> list[Problem]:
    """Check every done-record, and the size and SHA-256 of every file in it; return the problems by step."""
    problems: list[Problem] = []
    for step in sorted(finished(root)):
        try:
            record = read_record(root, step)
        except DamagedRecordError as error:
            problems.append(Problem(step, step.path, str(error).removeprefix(f"{step.path} ")))
            continue
        for file in record.files if record else []:
            reason = _difference(root, file)
            if reason:
                problems.append(Problem(step, Path(file.path), reason))
    return problems


def repair(root: Path, problems: Iterable[Problem]) -> set[Step]:
    """Delete the records of the damaged steps, so that the next run does them again; return the steps.

    Nothing else has to be deleted: a repeated step writes the same bytes, so later stages stay valid.
    """
    steps = {problem.step for problem in problems}
    for step in steps:
        drop_record(root, step)
    return steps


def _difference(root: Path, file: CoveredFile) -> str | None:
    """Return how a file differs from its record; None if it does not."""
    path = root / file.path
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file.size:
        return f"has {size} bytes instead of {file.size}"
    if sha256_of_file(path) != file.sha256:
        return "has other contents than were written (the SHA-256 differs)"
    return None
