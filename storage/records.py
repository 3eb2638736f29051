"""Done-records: small JSON files, each of which says that one shard of one stage is finished.

The record also names the files that the step wrote. It is written last, so a step without a record has to be
run. The remaining steps are the plan minus the records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from storage.errors import FloodlitError
from storage.files import sha256_of_file, sha256_of_json, shard_name, write_json

STAGES = ("inputs", "activations", "saliency", "scores")
_FAILED = ".failed.json"
_RECORD_NAME = re.compile(r"shard-(\d{5,})\.json")


class DamagedRecordError(FloodlitError, ValueError):
    """A done-record exists, but it is damaged or belongs to another step."""


@dataclass(frozen=True, order=True)
class Step:
    """One shard of one stage; ``explainer`` is empty for the stages that all explainers share."""

    stage: str
    shard: int
    explainer: str = ""

    def label(self, shards: int) -> str:
        """Return the step's name for messages, with shards counted from 1: ``saliency ddcam shard 3/12``."""
        return " ".join(filter(None, [self.stage, self.explainer, f"shard {self.shard + 1}/{shards}"]))

    @property
    def path(self) -> Path:
        """Path of the record in the run folder: ``done/saliency/ddcam/shard-00002.json``."""
        return Path("done", self.stage, self.explainer, shard_name(self.shard, "json"))

    @property
    def failure_path(self) -> Path:
        """Path of the description of a failure, beside the record: ``shard-00002.failed.json``."""
        return self.path.with_suffix(_FAILED)


@dataclass(frozen=True)
class CoveredFile:
    """A file that a step wrote: its path from the run folder, its size in bytes and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Cost:
    """Cost of explaining a shard.

    Attributes
    ----------
    explained
        Number of maps that were made.
    explain_seconds
        Seconds that it took.
    peak_bytes
        Largest memory in bytes, beyond that at the start.
    """

    explained: int
    explain_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Agreement:
    """Similarity of maps in lower precision to those in float32; None if no map can be compared.

    Attributes
    ----------
    rank_correlation, worst_rank_correlation
        Mean and lowest value over the maps of Spearman's rank correlation, in [-1, 1].
    difference, worst_difference
        Mean and highest value over the maps of the relative difference: the norm of the difference, divided
        by the norm of the map in float32.
    """

    rank_correlation: float | None
    worst_rank_correlation: float | None
    difference: float | None
    worst_difference: float | None


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """Facts that only one stage writes into its records; they are None in the records of the other stages.

    Attributes
    ----------
    cached
        Stage activations: whether the shard's activations are in ``activations.zarr``.
    metrics
        Stage scores: the metrics that the shard's score file holds.
    cost, agreement
        Stage saliency: the cost of explaining, and the effect of lower precision on the maps.
    """

    cached: bool | None = None
    metrics: tuple[str, ...] | None = None
    cost: Cost | None = None
    agreement: Agreement | None = None

    def flat(self) -> dict[str, Any]:
        """Return the facts that are not None in the form of the file, without nesting cost and agreement."""
        found: dict[str, Any] = {}
        for key in ("cached", "metrics"):
            if getattr(self, key) is not None:
                found[key] = getattr(self, key)
        for part in (self.cost, self.agreement):
            found |= {} if part is None else asdict(part)
        return found

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read the facts from a record as it is in the file."""
        metrics = record.get("metrics")
        return cls(
            cached=record.get("cached"),
            metrics=None if metrics is None else tuple(metrics),
            cost=_part_of(Cost, record),
            agreement=_part_of(Agreement, record),
        )


def _part_of(kind: Any, record: Mapping[str, Any]) -> Any:
    """Make an object of a dataclass from a record that holds its fields; None if the record has none."""
    names = [each.name for each in fields(kind)]
    return kind(**{name: record[name] for name in names}) if names[0] in record else None


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
        text = (root / step.path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        told = json.loads(text)
        checksum = told.pop("checksum")
        if sha256_of_json(told) != checksum:
            raise DamagedRecordError(f"{step.path} was altered: its checksum does not match")
        record = _record_of(told)
    except DamagedRecordError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedRecordError(f"{step.path} is not a done-record: {error!r}") from error
    if record.step != step:
        raise DamagedRecordError(f"{step.path} is the record of another step")
    return record


def _record_of(told: dict[str, Any]) -> DoneRecord:
    """Make a record from the content of its file."""
    return DoneRecord(
        step=Step(told["stage"], told["shard"], told["explainer"]),
        rows=told["rows"],
        statuses=told["statuses"],
        seconds=told["seconds"],
        worker=told["worker"],
        files=[CoveredFile(**file) for file in told["files"]],
        facts=StageFacts.of(told),
    )


def drop_record(root: Path, step: Step) -> None:
    """Delete the record of a step, so that the step runs again; nothing happens if there is none."""
    (root / step.path).unlink(missing_ok=True)


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
    failure = Failure(error, attempts, now, traceback.splitlines())
    write_json(root / step.failure_path, asdict(step) | asdict(failure))


def drop_failure(root: Path, step: Step) -> None:
    """Delete the description of a step's failure; nothing happens if there is none."""
    (root / step.failure_path).unlink(missing_ok=True)


def failures(root: Path) -> dict[Step, Failure]:
    """Return the steps that failed and have not been done since, with the descriptions of the failures."""
    found = {}
    for path in sorted((root / "done").rglob(f"shard-*{_FAILED}")):
        try:
            told = json.loads(path.read_bytes())
            step = Step(told["stage"], told["shard"], told["explainer"])
            found[step] = Failure(told["error"], told["attempts"], told["time"], told["traceback"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRecordError(f"{path} cannot be read ({error!r}); delete it") from error
    return found


def finished(root: Path) -> set[Step]:
    """Return the steps that have a record; folders are listed, and no record is opened or checked."""
    steps = set()
    for stage in STAGES:
        for path in (root / "done" / stage).rglob("shard-*.json"):
            match = _RECORD_NAME.fullmatch(path.name)
            if match:
                # "." stands for the stage's own folder, which has no folders of explainers.
                explainer = path.parent.relative_to(root / "done" / stage).as_posix()
                steps.add(Step(stage, int(match[1]), "" if explainer == "." else explainer))
    return steps


def _covered(root: Path, path: Path) -> CoveredFile:
    """Return a file's path from the run folder, its size and its SHA-256."""
    return CoveredFile(path.relative_to(root).as_posix(), path.stat().st_size, sha256_of_file(path))
