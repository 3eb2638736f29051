"""One job a store: a lock beside the run folder that says who holds it, and when it may be taken over."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from storage.files import write_json

BEAT_SECONDS = 20.0  # between two signs of life
STALE_SECONDS = 300.0  # without one, until another machine may take over


class LockedError(RuntimeError):
    """Another job holds the store; the message says which."""


class LostLockError(RuntimeError):
    """The store was taken over while this job gave no sign of life."""


class Lock:
    """A held lock; see :func:`held`."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path, self._about = path, about
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raise LostLockError if another job has the store by now."""
        if not self.is_mine():
            found = _read(self._path)
            taker = "nobody says who" if found is None else _named(found)
            raise LostLockError(
                f"the store was taken over ({taker}) after this job gave no sign of life for "
                f"{STALE_SECONDS:.0f} s; run it again when the other one is done"
            )

    def is_mine(self) -> bool:
        """Whether nobody has taken the lock over."""
        found = _read(self._path)
        return found is not None and found["token"] == self._about["token"]

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            with _guard(self._path):
                if not self.is_mine():
                    return
                write_json(self._path, self._about | {"beat": time.time()})


@contextmanager
def held(root: Path, job: str) -> Iterator[Lock]:
    """Hold the store in ``root`` for a job; the lock is the file ``ROOT.lock`` beside it.

    A lock is taken over if its holder is gone: the process has ended, where it ran on this machine; it has
    given no sign of life for 5 minutes, where it ran on another.

    Raises
    ------
    LockedError
        In one line, if another job holds it.
    """
    path = _path_of(root)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    with _guard(path):
        found = _read(path)
        if found is not None and _alive(found):
            raise LockedError(
                f"{root} is in use: {_named(found)}. Wait for it, or choose another store; a job that was "
                "killed is taken over by itself"
            )
        write_json(path, about)
    lock = Lock(path, about)
    lock._beating.start()
    try:
        yield lock
    finally:
        lock._left.set()
        lock._beating.join()
        with _guard(path):
            if lock.is_mine():
                path.unlink()


def holder(root: Path) -> str | None:
    """Who holds the store in ``root``, in words; None if nobody does."""
    found = _read(_path_of(root))
    return _named(found) if found is not None and _alive(found) else None


def _path_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.lock")


def _guard(path: Path) -> FileLock:
    """Between looking at the lock and writing it, nobody else may."""
    return FileLock(path.with_name(f".{path.name}.guard"))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
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
