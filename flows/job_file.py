"""The job file: a TOML file, which becomes a job or one line that says what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flows.job import JobError
from plugins.registry import complaints
from storage.files import UnreadableError, regular

LARGEST = 4_000_000  # bytes; the names of all 21,841 classes of ImageNet take less than one
UNKNOWN = "unknown key; docs/job.md lists the keys of a job, and docs/training.md those of a training"

JobType = TypeVar("JobType", bound=BaseModel)


def read_job(path: Path, kind: type[JobType], store: str | Path | None = None) -> JobType:
    """Read a job from a TOML file; relative paths start at the folder of the file.

    Parameters
    ----------
    path
        The TOML file, in UTF-8, of at most 4 MB.
    kind
        Class of the job, or of a part of its tables.
    store
        Place of the results, which replaces the file's own. A relative path starts at the working directory.

    Raises
    ------
    JobError
        If the file cannot be read or is not a valid job; the message is one line.
    """
    raw = _parsed(path)
    if store is not None:
        # An address stays as it is; a path starts here, and not at the folder of the file.
        raw["store"] = str(store) if not str(store) or ":/" in str(store) else str(Path(store).absolute())
    try:
        return kind.model_validate(raw, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise JobError(f"{path}: {complaints(error, UNKNOWN)}") from error


def _parsed(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file that have not been checked yet; raise JobError if it is none."""
    try:
        with regular(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from error
    except (UnreadableError, ValueError) as error:
        raise JobError(f"cannot read the job file: {error}") from error
    if len(data) > LARGEST:
        raise JobError(f"{path} has more than {LARGEST:,} bytes, which no job file has; name the right file")
    try:
        text = data.decode("utf-8-sig")  # some editors put a mark of the byte order before the text
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise JobError(f"{path} is not valid TOML: its lists or tables are nested too deeply") from error
    except ValueError as error:  # tomllib's own error is one, and so is Python's for numbers of 5,000 digits
        raise JobError(f"{path} is not valid TOML: {error}") from error
