"""Do the files still hold what the done-records say they do?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.files import PARTIAL, sha256_of_file
from storage.records import DamagedRecordError, Step, drop_record, finished, read_record


@dataclass(frozen=True)
class Problem:
    """A step whose record or files cannot be trusted: ``path`` is relative to the run folder."""

    step: Step
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def verify(root: Path) -> list[Problem]:
    """Check every done-record, and size and SHA-256 of every file it covers; sorted by step."""
    problems: list[Problem] = []
    for step in sorted(finished(root)):
        try:
            record = read_record(root, step)
        except DamagedRecordError as error:
            problems.append(Problem(step, step.path, str(error).removeprefix(f"{step.path} ")))
            continue
        for file in record["files"] if record else []:
            reason = _difference(root, file)
            if reason:
                problems.append(Problem(step, Path(file["path"]), reason))
    return problems


def repair(root: Path, problems: Iterable[Problem]) -> set[Step]:
    """Drop the records of the steps concerned, so that the next run does them again; returns the steps.

    Nothing else has to go: a step that is done again writes the same bytes, and later stages stay valid.
    """
    steps = {problem.step for problem in problems}
    for step in steps:
        drop_record(root, step)
    return steps


def leftovers(root: Path) -> list[Path]:
    """Temporary files of writers that were killed, relative to the run folder; harmless, and never read.

    Files that are being written right now look the same.
    """
    return sorted(path.relative_to(root) for path in root.rglob(f"*{PARTIAL}"))


def _difference(root: Path, file: dict[str, Any]) -> str | None:
    path = root / file["path"]
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file["size"]:
        return f"has {size} bytes instead of {file['size']}"
    if sha256_of_file(path) != file["sha256"]:
        return "has other contents than were written (SHA-256 differs)"
    return None
