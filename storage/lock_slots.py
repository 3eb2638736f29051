"""Places of a store's lock, with changes that are made only if nobody else has changed the lock meanwhile.

On a disk, processes exclude each other by the lock of another file. On S3 the server does it by conditional
writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, cast

from filelock import FileLock
from fsspec.asyn import sync
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import UnreadableError, parse_json, regular, write_json
from storage.places import is_remote

MOST_BYTES = 1 << 16  # of a lock, which has 300 and the name of the job


class LockedError(FloodlitError):
    """Another job holds the store; the message says which."""


class DamagedLockError(LockedError):
    """What lies in the place of a lock names no job, so that nobody knows whether the store is in use."""


class _Holder(BaseModel):
    """The content of a lock: who holds it."""

    model_config = ConfigDict(strict=True)

    token: str
    job: str
    host: str
    processes: str | None = None
    pid: int = Field(ge=1, lt=1 << 31)
    started: float
    since: str
    beat: FiniteFloat


class Slot(Protocol):
    """The place of a lock: a file or an object.

    Every method raises DamagedLockError if what lies there is no lock.

    Attributes
    ----------
    none_such
        A version that no lock ever has.
    """

    none_such: Any

    def read(self) -> tuple[dict[str, Any] | None, Any]:
        """Read the lock.

        Returns
        -------
        content
            None if there is no lock. ``beat`` is the time of the last renewal in seconds, by this machine's
            clock.
        version
            The version that was read; None if there is no lock.
        """

    def swap(self, version: Any, new: dict[str, Any] | None) -> bool:
        """Replace the lock if it still has this version.

        Parameters
        ----------
        version
            The version that :meth:`read` returned; None if there must be no lock.
        new
            The new content; None removes the lock.

        Returns
        -------
        bool
            Whether the lock had this version and was replaced.
        """


class FileSlot:
    """A lock in a file; its version is the file's content."""

    none_such = b""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard, self._clock = (path.with_name(f".{path.name}.{name}") for name in ("guard", "clock"))

    def read(self) -> tuple[dict[str, Any] | None, bytes | None]:
        try:
            with regular(self._path).open("rb") as file:
                version, written = file.read(MOST_BYTES + 1), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None, None
        except UnreadableError as error:
            raise _damaged(self._path, error) from error
        found = _parsed(version, self._path)
        # The age is measured by the clock of the disk, since the holder's clock may differ from ours.
        found["beat"] = time.time() - (self._now() - written)
        return found, version

    def _now(self) -> float:
        """Return the time by the clock of the disk's machine, or by ours if we may not write there."""
        try:
            try:
                os.utime(self._clock)
            except FileNotFoundError:
                # touch alone would not do: it hides the error of a disk on which no times can be set.
                self._clock.touch()
            return self._clock.stat().st_mtime
        except OSError:
            return time.time()

    def swap(self, version: bytes | None, new: dict[str, Any] | None) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._guard):
            if self.read()[1] != version:
                return False
            if new is None:
                self._path.unlink(missing_ok=True)
            else:
                write_json(self._path, new)
        return True


class ObjectSlot:
    """A lock in an object on S3; its version is the object's ETag."""

    none_such = f'"{"0" * 32}"'

    def __init__(self, path: Path) -> None:
        self._path, self._fs = path, cast(Any, path).fs
        bucket, _, key = cast(Any, path).path.partition("/")
        self._where = {"Bucket": bucket, "Key": key}

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        try:
            with _as_os_error():
                answer = self._fs.call_s3("get_object", **self._where)
                large = answer["ContentLength"] > MOST_BYTES
                text = b" " * (MOST_BYTES + 1) if large else sync(self._fs.loop, answer["Body"].read)
        except OSError as error:
            if _code(error) == "NoSuchKey":
                return None, None
            raise
        found = _parsed(text, self._path)
        # The age is measured by the clock of the server, since the holder's clock may differ from ours.
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        found["beat"] = time.time() - (now - answer["LastModified"]).total_seconds()
        return found, answer["ETag"]

    def swap(self, version: str | None, new: dict[str, Any] | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with _as_os_error():
                if new is None:
                    self._fs.call_s3("delete_object", **self._where, **condition)
                else:
                    body = json.dumps(new).encode()
                    self._fs.call_s3("put_object", **self._where, **condition, Body=body)
        except OSError as error:
            # NoSuchKey: a lock that has been removed does not have the wanted version either.
            if _code(error) in {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}:
                return False
            raise
        return True


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise every error of botocore or of the connection as an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _code(error: OSError) -> str:
    """Return S3's name of an error, e.g. NoSuchKey; an empty text if it is not an answer of S3."""
    code: str = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
    return code


def slot_of(root: Path) -> Slot:
    """Return the place of the lock of the store in ``root``."""
    path = root.with_name(f"{root.name}.lock")
    return ObjectSlot(path) if is_remote(path) else FileSlot(path)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """Return the content of a lock; raise DamagedLockError if it names no job."""
    try:
        return _Holder.model_validate(parse_json(text, "it", MOST_BYTES)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise _damaged(path, ValueError(f"{where}: {first['msg']}")) from error
    except UnreadableError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedLockError:
    """Return the error that a lock is damaged, with what to do."""
    return DamagedLockError(
        f"{path} is a damaged lock, which names no job ({one_line(error, LONGEST)}). If no job uses the "
        "store, delete this file and run the job again"
    )
