"""The file ``run.json``: the manifest with its own checksum, believed only within bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import read_json, sha256_of_json, write_json
from storage.layout import Layout
from storage.manifest import Manifest

NAME = "run.json"
MOST_STEPS = 200_000  # of a run; 50,000 images in shards of 16 with 10 explainers have 69,000
MOST_SHARD_BYTES = 1 << 40  # of a shard in memory, which a worker has to hold
_FOLDER = re.compile(r"\w[\w.:+-]*")  # names become those of folders, which must not lead out of the run


class DamagedRunError(FloodlitError, ValueError):
    """A run folder exists, but what describes it is damaged or claims the impossible."""


class _Batch(BaseModel):
    images: int = Field(ge=1)
    forwards: int = Field(ge=1)


class JobFacts(BaseModel):
    """The keys of the job that a run reads itself; :class:`flows.job.Job` describes all keys."""

    name: str
    target: Any
    tolerance: float = Field(ge=0, le=1)
    seed: int
    batch: _Batch


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``run.json`` with its checksum."""
    told = manifest.model_dump(mode="json")
    write_json(root / NAME, told | {"checksum": sha256_of_json(told)})


def read_manifest(root: Path) -> tuple[Manifest, bool]:
    """Read ``run.json``.

    Returns
    -------
    manifest
        The manifest.
    signed
        Whether the file holds a checksum; files of older versions do not.

    Raises
    ------
    DamagedRunError
        If the file cannot be read, was altered, or claims what no run can be. The message is one line.
    """
    path = root / NAME
    try:
        told = read_json(path)
    except (ValueError, OSError) as error:
        why = one_line(error, LONGEST).removeprefix(f"{path} ")
        raise DamagedRunError(f"{path} cannot be read: {why}; restore it or choose another store") from error
    checksum = told.pop("checksum", None) if isinstance(told, dict) else None
    try:
        manifest = Manifest.model_validate(told)
    except ValidationError as error:
        raise _another(path, error) from error
    if checksum is not None and checksum != sha256_of_json(told):
        raise DamagedRunError(f"{path} was altered: its checksum does not match; restore it")
    problem = next(problems(manifest), None)
    if problem is None and manifest.hash != sha256_of_json(manifest.identity):
        problem = "hash: it is not that of identity, so one of them was altered"
    if problem is not None:
        raise DamagedRunError(f"{path} is not a run: {problem}; restore it or choose another store")
    return manifest, checksum is not None


def job_facts(root: Path, manifest: Manifest) -> JobFacts:
    """Return the keys of the job that a run reads itself.

    Raises
    ------
    DamagedRunError
        If one is missing or has a wrong value.
    """
    try:
        return JobFacts.model_validate(manifest.job)
    except ValidationError as error:
        raise _another(root / NAME, error, "job") from error


def _another(path: Path, error: ValidationError, *above: str) -> DamagedRunError:
    """Return the error that a file describes no run; ``above`` is the place of what was validated in it."""
    first = error.errors()[0]
    where = ".".join(map(str, (*above, *first["loc"])))[:LONGEST]
    return DamagedRunError(f"{path} is not a run of this version of Floodlit: {where}: {first['msg']}")


def problems(manifest: Manifest) -> Iterator[str]:
    """Yield what makes a manifest one of no possible run; each begins with a key."""
    details = {key for entry in manifest.explainers.values() for key in entry.details}
    for name in [*manifest.explainers, *manifest.metrics, *details]:
        if not _FOLDER.fullmatch(name):
            yield f"{name[:60]!r} cannot name a folder; use letters, digits, '_', '-', '.' and ':'"
            return
    kinds = {detail.dtype for entry in manifest.explainers.values() for detail in entry.details.values()}
    for kind in kinds:
        if not _is_number(kind):
            yield f"explainers: a detail has the type {kind[:60]!r}, which holds no numbers"
            return
    layout = Layout(manifest)
    if layout.steps > MOST_STEPS:
        yield (
            f"batch.shard: {manifest.rows:,} rows in shards of {manifest.shard_rows:,} are {layout.steps:,} "
            f"steps, and a run has at most {MOST_STEPS:,}; choose larger shards"
        )
    for path, array in layout.arrays.items():
        if any(size < 1 for size in array.shape) or array.shard_bytes > MOST_SHARD_BYTES:
            shape = "x".join(map(str, (array.shard_rows, *array.shape)))
            yield f"batch.shard: a shard of {path} has {shape[:60]} numbers, which no memory holds"


def _is_number(dtype: str) -> bool:
    """Whether a NumPy type is one of numbers or truth values."""
    try:
        return np.dtype(dtype).kind in "biuf"
    except (TypeError, ValueError):
        return False
