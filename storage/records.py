"""Done-records: one small JSON file says that one shard of one stage is finished, and what it wrote.

The record is written last, so a step without one has to be run. Resuming is the plan minus the records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.files import sha256_of_file, sha256_of_json, shard_name, write_json

STAGES = ("inputs", "activations", "saliency", "scores")
_FAILED = ".failed.json"
_RECORD_NAME = re.compile(r"shard-(\d{5,})\.json")


class DamagedRecordError(ValueError):
    """A done-record that is there and cannot be believed."""


@dataclass(frozen=True, order=True)
class Step:
    """One shard of one stage; ``explainer`` is empty for the stages that all explainers share."""

    stage: str
    shard: int
    explainer: str = ""

    def label(self, shards: int) -> str:
        """What people read, counted from one: ``saliency ddcam shard 3/12``."""
        return " ".join(filter(None, [self.stage, self.explainer, f"shard {self.shard + 1}/{shards}"]))

    @property
    def path(self) -> Path:
        """Where the record lies in the run folder: ``done/saliency/ddcam/shard-00002.json``."""
        return Path("done", self.stage, self.explainer, shard_name(self.shard, "json"))

    @property
    def failure_path(self) -> Path:
        """Where its failure is told, beside the record: ``shard-00002.failed.json``."""
        return self.path.with_suffix(_FAILED)


def write_record(
    root: Path,
    step: Step,
    *,
    rows: int,
    statuses: Mapping[str, int],
    files: Iterable[Path],
    seconds: float,
    worker: str,
    **extra: Any,
) -> dict[str, Any]:
    """Write the record of a finished step, after everything else the step writes.

    Parameters
    ----------
    root
        The run folder.
    rows, statuses
        Rows the step wrote, and how many of them have each status.
    files
        Every file the step wrote, in ``root`` or relative to it; their sizes and SHA-256 go in.
    seconds, worker
        How long the step took and who did it.
    **extra
        Anything else that JSON can hold, e.g. the metrics a score file contains.
    """
    record: dict[str, Any] = extra | {
        "stage": step.stage,
        "shard": step.shard,
        "explainer": step.explainer,
        "rows": rows,
        "statuses": dict(statuses),
        "seconds": round(seconds, 3),
        "worker": worker,
        "files": [_covered(root, path if path.is_absolute() else root / path) for path in files],
    }
    record = json.loads(json.dumps(record))
    record["checksum"] = sha256_of_json(record)
    write_json(root / step.path, record)
    drop_failure(root, step)
    return record


def read_record(root: Path, step: Step) -> dict[str, Any] | None:
    """The record of a step, or None if there is none.

    Raises
    ------
    DamagedRecordError
        If the file is no JSON, was altered, or belongs to another step.
    """
    try:
        text = (root / step.path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = json.loads(text)
        checksum = record.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedRecordError(f"{step.path} is not a done-record: {error!r}") from error
    if sha256_of_json(record) != checksum:
        raise DamagedRecordError(f"{step.path} was altered: its checksum does not match")
    if Step(record["stage"], record["shard"], record["explainer"]) != step:
        raise DamagedRecordError(f"{step.path} is the record of another step")
    return dict(record)


def drop_record(root: Path, step: Step) -> None:
    """Forget that a step was done; nothing happens if it was not."""
    (root / step.path).unlink(missing_ok=True)


def write_failure(root: Path, step: Step, error: str, traceback: str, attempts: int) -> None:
    """Say beside where the record would be that a step failed, after how many attempts, and why."""
    about = {"stage": step.stage, "shard": step.shard, "explainer": step.explainer}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    told = {"error": error, "attempts": attempts, "time": now, "traceback": traceback.splitlines()}
    write_json(root / step.failure_path, about | told)


def drop_failure(root: Path, step: Step) -> None:
    """Forget that a step failed; nothing happens if it did not."""
    (root / step.failure_path).unlink(missing_ok=True)


def failures(root: Path) -> dict[Step, dict[str, Any]]:
    """What :func:`write_failure` wrote of each step that failed and was not done since."""
    found = {}
    for path in sorted((root / "done").rglob(f"shard-*{_FAILED}")):
        told = json.loads(path.read_bytes())
        found[Step(told["stage"], told["shard"], told["explainer"])] = told
    return found


def finished(root: Path) -> set[Step]:
    """The steps that have a record, by listing folders alone; nothing is opened or checked."""
    steps = set()
    for stage in STAGES:
        for path in (root / "done" / stage).rglob("shard-*.json"):
            match = _RECORD_NAME.fullmatch(path.name)
            if match:
                explainer = path.parent.relative_to(root / "done" / stage).as_posix()
                steps.add(Step(stage, int(match[1]), "" if explainer == "." else explainer))
    return steps


def _covered(root: Path, path: Path) -> dict[str, Any]:
    return {
        "path": path.relative_to(root).as_posix(),
        "size": path.stat().st_size,
        "sha256": sha256_of_file(path),
    }
