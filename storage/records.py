"""Done-records: small JSON files, each of which says that one shard of one stage is finished.

The record also names the files that the step wrote. It is written last, so a step without a record has to be
run. The remaining steps are the plan minus the records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import (
    UnreadableError,
    make_room,
    read_json,
    sha256_of_file,
    sha256_of_json,
    shard_name,
    write_json,
)
from storage.places import is_there
from storage.stage_facts import Agreement, Cost, StageFacts

__all__ = ["Agreement", "Cost", "StageFacts"]

STAGES = ("inputs", "activations", "saliency", "scores")
SUSPICIONS = "suspicions"  # the stage that looks for findings; its shards are parts of the classes
_RUN_STAGES = ("arrays", "summary", "findings")  # each writes one record for the whole run
_FAILED = ".failed.json"
_NUMBER = re.compile(r"shard-(\d+)\.")


class DamagedRecordError(FloodlitError, ValueError):
    """A done-record exists, but it is damaged or belongs to another step."""


@dataclass(frozen=True, order=True)
class Step:
    """One shard of one stage; ``explainer`` is empty for the stages that all explainers share.

    Shards are of images, and those of the stage :data:`SUSPICIONS` are of classes.
    """

    stage: str
    shard: int
    explainer: str = ""

    def label(self, shards: int) -> str:
        """Return the step's name for messages, with shards counted from 1: ``saliency ddcam shard 3/12``.

        Parameters
        ----------
        shards
            The number of shards of images. How many parts of classes there are is not told.
        """
        if self.stage == SUSPICIONS:
            return f"{self.stage} {self.explainer} part {self.shard + 1}"
        return " ".join(filter(None, [self.stage, self.explainer, f"shard {self.shard + 1}/{shards}"]))

    @property
    def path(self) -> Path:
        """Path of the record in the run folder: ``done/saliency/ddcam/shard-00002.json``."""
        if self.stage in _RUN_STAGES:
            return Path("done", f"{self.stage}.json")
        return Path("done", self.stage, self.explainer, shard_name(self.shard, "json"))

    @property
    def failure_path(self) -> Path:
        """Path of the description of a failure, beside the record: ``shard-00002.failed.json``."""
        return self.path.with_suffix(_FAILED)


ARRAYS = Step("arrays", 0)  # covers the metadata of arrays; it is written when they are created
SUMMARY = Step("summary", 0)  # covers the tables and pictures of the whole run; it is written last
FINDINGS = Step("findings", 0)  # covers the tables and arrays of the findings of the whole run


@dataclass(frozen=True)
class CoveredFile:
    """A file that a step wrote: its path from the run folder, its size in bytes and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DoneRecord:
    """The record of a finished step.

    Attributes
    ----------
    step
        The step.
    rows
        Number of rows that the step wrote.
    statuses
        Number of rows with each status.
    seconds
        Duration of the step in seconds.
    worker
        The process that ran the step.
    files
        Every file that the step wrote.
    facts
        Facts that only this stage has.
    """

    step: Step
    rows: int
    statuses: dict[str, int]
    seconds: float
    worker: str
    files: list[CoveredFile]
    facts: StageFacts = field(default_factory=StageFacts)


_RECORD = TypeAdapter(DoneRecord)
# Whatever a file of JSON with other contents than a record may raise; pydantic's error is a ValueError.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def write_record(
    root: Path,
    step: Step,
    *,
    rows: int,
    statuses: Mapping[str, int],
    files: Iterable[Path],
    seconds: float,
    worker: str,
    facts: StageFacts | None = None,
) -> DoneRecord:
    """Write the record of a finished step; call it after everything else that the step writes.

    A description of an earlier failure of the step is removed.

    Parameters
    ----------
    root
        The run folder.
    step
        The step.
    rows, statuses, seconds, worker, facts
        As in :class:`DoneRecord`.
    files
        Every file that the step wrote, as a path in ``root`` or relative to it. The record gets their sizes
        and SHA-256.
    """
    told: dict[str, Any] = (facts or StageFacts()).flat() | asdict(step)
    told |= {
        "rows": rows,
        "statuses": dict(statuses),
        "seconds": round(seconds, 3),
        "worker": worker,
        "files": [asdict(_covered(root, path if path.is_absolute() else root / path)) for path in files],
    }
    told = json.loads(json.dumps(told))  # so that the returned record equals the one that is read later
    write_json(root / step.path, told | {"checksum": sha256_of_json(told)})
    drop_failure(root, step)
    return _record_of(told)


def read_record(root: Path, step: Step) -> DoneRecord | None:
    """Read the record of a step; return None if there is none.

    Raises
    ------
    DamagedRecordError
        If the file is not JSON, was altered, or belongs to another step.
    """
    try:
        told = _read_signed(root / step.path)
        record = _record_of(told)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        raise _damaged(step.path, f"is not a done-record ({_reason(error)})") from error
    if record.step != step:
        raise _damaged(step.path, "is the record of another step")
    return record


def _read_signed(path: Path) -> dict[str, Any]:
    """Read a JSON object that holds its own checksum; a description of a failure may have none."""
    told = read_json(path)
    if not isinstance(told, dict):
        raise UnreadableError("it holds no table")
    if "checksum" not in told and not path.name.endswith(_FAILED):
        raise UnreadableError("it has no checksum")
    checksum = told.pop("checksum", None)
    if checksum is not None and sha256_of_json(told) != checksum:
        raise UnreadableError("it was altered: its checksum does not match")
    return told


def _damaged(path: Path, what: str) -> DamagedRecordError:
    """Return the error that a record is damaged; ``path`` is relative to the run folder."""
    return DamagedRecordError(f"{path} {what}; delete it, or run the job again, which repeats the step")


def _reason(error: Exception) -> str:
    """Return in words what is wrong with the content of a record."""
    return f"it lacks {error}" if isinstance(error, KeyError) else one_line(error, LONGEST)


def _record_of(told: dict[str, Any]) -> DoneRecord:
    """Make a record from the content of its file; raise an error of ``_DAMAGE`` if it has other types."""
    record = DoneRecord(
        step=Step(told["stage"], told["shard"], told["explainer"]),
        rows=told["rows"],
        statuses=told["statuses"],
        seconds=told["seconds"],
        worker=told["worker"],
        files=[CoveredFile(**file) for file in told["files"]],
        facts=StageFacts.of(told),
    )
    # As JSON, because only there may a strict check take a list for a tuple.
    return _RECORD.validate_json(json.dumps(asdict(record)), strict=True)


def drop_record(root: Path, step: Step) -> None:
    """Delete the record of a step, so that the step runs again; nothing happens if there is none."""
    make_room(root / step.path)


@dataclass(frozen=True)
class Failure:
    """The description of a step's failure.

    Attributes
    ----------
    error
        The last error, in one line.
    attempts
        Number of attempts.
    time
        Time of the failure in UTC, in ISO 8601.
    traceback
        Lines of the traceback.
    """

    error: str
    attempts: int
    time: str
    traceback: list[str]


_FAILURE = TypeAdapter(Failure)


def write_failure(root: Path, step: Step, error: str, traceback: str, attempts: int) -> None:
    """Write the description of a step's failure, beside the place of its record.

    Parameters
    ----------
    error
        The last error, in one line.
    traceback
        The traceback as one text.
    attempts
        Number of attempts.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    told = asdict(step) | asdict(Failure(error, attempts, now, traceback.splitlines()))
    write_json(root / step.failure_path, told | {"checksum": sha256_of_json(told)})


def drop_failure(root: Path, step: Step) -> None:
    """Delete the description of a step's failure; nothing happens if there is none."""
    make_room(root / step.failure_path)


def failures(root: Path) -> dict[Step, Failure]:
    """Return the steps that failed and have not been done since, with the descriptions of the failures.

    Raises
    ------
    DamagedRecordError
        If a description is damaged or belongs to another step.
    """
    return {step: read_failure(root, step) for step in _listed(root, _FAILED)}


def read_failure(root: Path, step: Step) -> Failure:
    """Read the description of a step's failure.

    Raises
    ------
    DamagedRecordError
        If the file is damaged or is about another step.
    """
    try:
        told = _read_signed(root / step.failure_path)
        named = Step(told["stage"], told["shard"], told["explainer"])
        failure = Failure(told["error"], told["attempts"], told["time"], told["traceback"])
        failure = _FAILURE.validate_json(json.dumps(asdict(failure)), strict=True)
    except _DAMAGE as error:
        raise _damaged(step.failure_path, f"cannot be read ({_reason(error)})") from error
    if named != step:
        raise _damaged(step.failure_path, "is about another step")
    return failure


def is_finished(root: Path, step: Step) -> bool:
    """Whether a step has a record, which is neither opened nor checked."""
    return is_there(root / step.path)


def finished(root: Path) -> set[Step]:
    """Return the steps that have a record; folders are listed, and no record is opened or checked.

    The folder may hold records of steps that its run does not have, see :meth:`storage.run.Run.finished`.
    """
    return set(_listed(root, ".json"))


def _listed(root: Path, suffix: str) -> list[Step]:
    """Return the steps of all shards that have a file with this suffix, sorted."""
    steps = []
    for stage in (*STAGES, SUSPICIONS):
        for path in (root / "done" / stage).rglob(f"shard-*{suffix}"):
            match = _NUMBER.match(path.name)
            # "." stands for the stage's own folder, which has no folders of explainers.
            explainer = path.parent.relative_to(root / "done" / stage).as_posix()
            if match:
                step = Step(stage, int(match[1]), "" if explainer == "." else explainer)
                # The same number may be written in several ways, of which one is the file's name.
                if path.name == shard_name(step.shard, suffix[1:]):
                    steps.append(step)
    return sorted(steps)


def _covered(root: Path, path: Path) -> CoveredFile:
    """Return a file's path from the run folder, its size and its SHA-256."""
    return CoveredFile(path.relative_to(root).as_posix(), path.stat().st_size, sha256_of_file(path))
