"""One job a store: a lock beside the run folder that says who holds it, and when it may be taken over.

Every change of the lock is made only if it is still what it was when it was looked at. Between processes
that share a disk another file's lock sees to that; on S3 the server does, by conditional writes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, cast

import psutil
from filelock import FileLock
from fsspec.asyn import sync

from storage.files import write_json
from storage.places import check_answers, is_remote

BEAT_SECONDS = 20.0  # between two signs of life
STALE_SECONDS = 300.0  # without one, until another machine may take over
_HELD: set[str] = set()  # tokens of the locks that this process holds


class LockedError(RuntimeError):
    """Another job holds the store; the message says which."""


class LostLockError(RuntimeError):
    """The store was taken over while this job gave no sign of life."""


class Lock:
    """A held lock; see :func:`held`."""

    def __init__(self, slot: _Slot, about: dict[str, Any]) -> None:
        self._slot, self._about = slot, about
        self._left = threading.Event()
        self._beaten = time.monotonic()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """See that the store is still ours.

        Raises
        ------
        LostLockError
            If another job has it by now.
        OSError
            If another machine may have it for all we can tell, because for so long this job could give no
            sign of life: its disk is full, or its server away.
        """
        try:
            found = self._touch() if self._silent() else self._slot.read()[0]
        except OSError:
            if self._silent():  # by now: a server that is away is asked for minutes
                raise
            return  # away for a moment
        if not self._is_mine(found):
            taker = "nobody says who" if found is None else _named(found)
            raise LostLockError(
                f"the store was taken over ({taker}) after this job gave no sign of life for "
                f"{STALE_SECONDS:.0f} s; run it again when the other one is done"
            )

    def _silent(self) -> bool:
        return time.monotonic() - self._beaten > STALE_SECONDS - 2 * BEAT_SECONDS

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found["token"] == self._about["token"]

    def _touch(self) -> dict[str, Any] | None:
        """Give a sign of life, if the lock is still ours; what it says."""
        began = time.monotonic()
        found, version = self._slot.read()
        if not self._is_mine(found):
            return found
        if not self._slot.swap(version, self._about | {"beat": time.time()}):
            return self._slot.read()[0]  # what came between
        self._beaten = began
        return found

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            with suppress(OSError):  # of a server that is away for a moment
                if not self._is_mine(self._touch()):
                    return

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
    check_answers(root)
    slot = _slot_of(root)
    me = psutil.Process()
    about = {
        "token": uuid.uuid4().hex,
        "job": job,
        "host": socket.gethostname(),
        "processes": _process_namespace(),
        "pid": me.pid,
        "started": _started(me),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "beat": time.time(),
    }
    _HELD.add(about["token"])
    try:
        _take(slot, about, root)
        lock = Lock(slot, about)
        lock._beating.start()
        try:
            _check_conditions(slot, about, root)
            yield lock
        finally:
            lock._leave()
    finally:
        _HELD.discard(about["token"])


def _take(slot: _Slot, about: dict[str, Any], root: Path) -> None:
    while True:
        found, version = slot.read()
        if found is not None and found["token"] == about["token"]:
            return  # written by a request whose answer was lost
        if found is not None and _alive(found):
            raise LockedError(
                f"{root} is in use: {_named(found)}. Wait for it, or choose another store; a job that was "
                "killed is taken over by itself"
            )
        if slot.swap(version, about):
            return


def _check_conditions(slot: _Slot, about: dict[str, Any], root: Path) -> None:
    if slot.swap(None, about) or slot.swap(slot.none_such, about):
        raise OSError(
            f"{root}: its S3 server ignores conditional writes (If-None-Match, If-Match), so that two jobs "
            "could run there at once; use a server that has them"
        )


def holder(root: Path) -> str | None:
    """Who holds the store in ``root``, in words; None if nobody does."""
    found, _ = _slot_of(root).read()
    return _named(found) if found is not None and _alive(found) else None


class _Slot(Protocol):
    """Where a lock lies."""

    none_such: Any  # a version that no lock ever has

    def read(self) -> tuple[dict[str, Any] | None, Any]:
        """What it says, None if there is none or it is damaged, and which version of it that is."""

    def swap(self, version: Any, new: dict[str, Any] | None) -> bool:
        """Write ``new``, or remove the lock, if it still is of that version; whether it was."""


class _File:
    none_such = b""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard, self._clock = (path.with_name(f".{path.name}.{name}") for name in ("guard", "clock"))

    def read(self) -> tuple[dict[str, Any] | None, bytes | None]:
        try:
            with self._path.open("rb") as file:
                version, written = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None, None
        found = _parsed(version)
        if found is not None:  # by the disk's clock, since its holder's may be another than ours
            found["beat"] = time.time() - (self._now() - written)
        return found, version

    def _now(self) -> float:
        """By the clock of the machine that has the disk; by ours, where we may not write there."""
        try:
            try:
                os.utime(self._clock)
            except FileNotFoundError:
                self._clock.touch()  # which would hide that a disk takes no times
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


class _Object:
    """On S3: a version is an ETag."""

    none_such = f'"{"0" * 32}"'

    def __init__(self, path: Path) -> None:
        self._fs = cast(Any, path).fs
        bucket, _, key = cast(Any, path).path.partition("/")
        self._where = {"Bucket": bucket, "Key": key}

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        try:
            with _told():
                answer = self._fs.call_s3("get_object", **self._where)
                found = _parsed(sync(self._fs.loop, answer["Body"].read))
        except OSError as error:
            if _code(error) == "NoSuchKey":
                return None, None
            raise
        if found is not None:  # by the server's clock, since its holder's may be another than ours
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            found["beat"] = time.time() - (now - answer["LastModified"]).total_seconds()
        return found, answer["ETag"]

    def swap(self, version: str | None, new: dict[str, Any] | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with _told():
                if new is None:
                    self._fs.call_s3("delete_object", **self._where, **condition)
                else:
                    body = json.dumps(new).encode()
                    self._fs.call_s3("put_object", **self._where, **condition, Body=body)
        except OSError as error:
            if _code(error) in {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}:
                return False
            raise
        return True


@contextmanager
def _told() -> Iterator[None]:
    """Whatever botocore or the connection raises is an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


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
    if (found["host"], found.get("processes")) != (socket.gethostname(), _process_namespace()):
        return time.time() - float(found["beat"]) < STALE_SECONDS
    if found["pid"] == os.getpid():
        return found["token"] in _HELD  # or it is what an earlier attempt could not take back
    try:
        holder = psutil.Process(found["pid"])
        ended = holder.status() == psutil.STATUS_ZOMBIE
        return not ended and bool(_started(holder) == found["started"])
    except psutil.NoSuchProcess:
        return _hidden(found["pid"])


def _hidden(pid: int) -> bool:
    """Whether it is another user's, of whom /proc may show nothing."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _started(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's, which a clock that is set does not change."""
    return round(process.create_time() - psutil.boot_time(), 2)


def _process_namespace() -> str | None:
    """What containers that share a host's name do not share; None where there is no such thing."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    return None


def _named(found: dict[str, Any]) -> str:
    return f"job {found['job']}, process {found['pid']} on {found['host']}, since {found['since']}"
