"""One job a store: a lock beside the run folder that says who holds it, and when it may be taken over.

Every change of the lock is made only if it is still what it was when it was looked at. Between processes
that share a disk another file's lock sees to that; on S3 the server does, by conditional writes.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import psutil
from filelock import FileLock
from fsspec.asyn import sync

from storage.files import write_json
from storage.places import is_remote

BEAT_SECONDS = 20.0  # between two signs of life
STALE_SECONDS = 300.0  # without one, until another machine may take over


class LockedError(RuntimeError):
    """Another job holds the store; the message says which."""


class LostLockError(RuntimeError):
    """The store was taken over while this job gave no sign of life."""


class Lock:
    """A held lock; see :func:`held`."""

    def __init__(self, slot: _Slot, about: dict[str, Any]) -> None:
        self._slot, self._about = slot, about
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raise LostLockError if another job has the store by now."""
        if not self.is_mine():
            found, _ = self._slot.read()
            taker = "nobody says who" if found is None else _named(found)
            raise LostLockError(
                f"the store was taken over ({taker}) after this job gave no sign of life for "
                f"{STALE_SECONDS:.0f} s; run it again when the other one is done"
            )

    def is_mine(self) -> bool:
        """Whether nobody has taken the lock over."""
        return self._is_mine(self._slot.read()[0])

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found["token"] == self._about["token"]

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            try:
                found, version = self._slot.read()
                if not self._is_mine(found):
                    return
                self._slot.swap(version, self._about | {"beat": time.time()})
            except OSError:
                continue  # a server that is away for a moment; whether the lock is lost the next beat tells

    def _leave(self) -> None:
        self._left.set()
        self._beating.join()
        with suppress(OSError):  # of a server that is away: the lock of a process that ended holds nobody up
            found, version = self._slot.read()
            if self._is_mine(found):
                self._slot.swap(version, None)


@contextmanager
def held(root: Path, job: str) -> Iterator[Lock]:
    """Hold the store in ``root`` for a job; the lock is the file or object ``ROOT.lock`` beside it.

    A lock is taken over if its holder is gone: the process has ended, where it ran on this machine; it has
    given no sign of life for 5 minutes, where it ran on another.

    Raises
    ------
    LockedError
        In one line, if another job holds it.
    OSError
        If the store cannot be reached, or its S3 server has no conditional writes.
    """
    slot = _slot_of(root)
    me = psutil.Process()
    about = {
        "token": uuid.uuid4().hex,
        "job": job,
        "host": socket.gethostname(),
        "pid": me.pid,
        "started": me.create_time(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "beat": time.time(),
    }
    while True:
        found, version = slot.read()
        if found is not None and found["token"] == about["token"]:
            break  # written by a request whose answer was lost
        if found is not None and _alive(found):
            raise LockedError(
                f"{root} is in use: {_named(found)}. Wait for it, or choose another store; a job that was "
                "killed is taken over by itself"
            )
        if slot.swap(version, about):
            break
    if slot.swap(None, about):
        raise OSError(
            f"{root}: its S3 server ignores conditional writes (If-None-Match), so that two jobs could run "
            "there at once; use a server that has them"
        )
    lock = Lock(slot, about)
    lock._beating.start()
    try:
        yield lock
    finally:
        lock._leave()


def holder(root: Path) -> str | None:
    """Who holds the store in ``root``, in words; None if nobody does."""
    found, _ = _slot_of(root).read()
    return _named(found) if found is not None and _alive(found) else None


class _Slot(Protocol):
    """Where a lock lies."""

    def read(self) -> tuple[dict[str, Any] | None, Any]:
        """What it says, None if there is none or it is damaged, and which version of it that is."""

    def swap(self, version: Any, new: dict[str, Any] | None) -> bool:
        """Write ``new``, or remove the lock, if it still is of that version; whether it was."""


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[dict[str, Any] | None, bytes | None]:
        try:
            version = self._path.read_bytes()
        except FileNotFoundError:
            return None, None
        return _parsed(version), version

    def swap(self, version: bytes | None, new: dict[str, Any] | None) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f".{self._path.name}.guard")):
            if self.read()[1] != version:
                return False
            if new is None:
                self._path.unlink(missing_ok=True)
            else:
                write_json(self._path, new)
        return True


class _Object:
    """On S3: a version is an ETag."""

    def __init__(self, path: Path) -> None:
        self._fs = cast(Any, path).fs
        bucket, _, key = cast(Any, path).path.partition("/")
        self._where = {"Bucket": bucket, "Key": key}

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        try:
            answer = self._call("get_object")
            body: bytes = sync(self._fs.loop, answer["Body"].read)
        except OSError as error:
            if _code(error) == "NoSuchKey":
                return None, None
            raise
        return _parsed(body), answer["ETag"]

    def swap(self, version: str | None, new: dict[str, Any] | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            if new is None:
                self._call("delete_object", **condition)
            else:
                self._call("put_object", **condition, Body=json.dumps(new).encode())
        except OSError as error:
            if _code(error) in {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}:
                return False
            raise
        return True

    def _call(self, method: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError

        try:
            return self._fs.call_s3(method, **self._where, **arguments)
        except BotoCoreError as error:
            raise OSError(str(error)) from error


def _code(error: OSError) -> str:
    """What S3 calls it."""
    code: str = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
    return code


def _slot_of(root: Path) -> _Slot:
    path = root.with_name(f"{root.name}.lock")
    return _Object(path) if is_remote(path) else _File(path)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return found


def _alive(found: dict[str, Any]) -> bool:
    if found["host"] != socket.gethostname():
        return time.time() - float(found["beat"]) < STALE_SECONDS
    try:
        holder = psutil.Process(found["pid"])
        ended = holder.status() == psutil.STATUS_ZOMBIE
        return not ended and bool(holder.create_time() == found["started"])
    except psutil.NoSuchProcess:
        return False


def _named(found: dict[str, Any]) -> str:
    return f"job {found['job']}, process {found['pid']} on {found['host']}, since {found['since']}"
