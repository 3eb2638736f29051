"""The lock of a store, which allows one job at a time; it lies beside the run folder and names its holder.

A change of the lock is made only if the lock has not changed since it was read; see
:mod:`storage.lock_slots`. A holder renews its lock regularly. A lock that is not renewed may be taken over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from storage.errors import FloodlitError
from storage.lock_slots import LockedError, Slot, slot_of
from storage.places import check_answers

BEAT_SECONDS = 20.0  # between two renewals of a held lock
STALE_SECONDS = 300.0  # without a renewal, until another machine may take the lock over
_HELD: set[str] = set()  # tokens of the locks that this process holds


class LostLockError(FloodlitError):
    """Another job took the store over because this job did not renew its lock in time."""


class Lock:
    """A held lock; see :func:`held`."""

    def __init__(self, slot: Slot, about: dict[str, Any]) -> None:
        self._slot, self._about = slot, about
        self._left = threading.Event()
        self._beaten = time.monotonic()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Check that this job still holds the store.

        Raises
        ------
        LostLockError
            If another job has taken the store over.
        OSError
            If another machine may have taken it over, because this job could not renew its lock for too long:
            its disk is full, or the server does not answer.
        """
        try:
            found = self._touch() if self._silent() else self._slot.read()[0]
        except OSError:
            if self._silent():  # asked again, because the request above may have taken minutes to fail
                raise
            return  # the server may be away only for a moment, and the lock is not yet in danger
        if not self._is_mine(found):
            taker = "the lock names no job" if found is None else _named(found)
            raise LostLockError(
                f"the store was taken over ({taker}) because this job did not renew its lock for "
                f"{STALE_SECONDS:.0f} s; run it again when the other job has ended"
            )

    def _silent(self) -> bool:
        """Whether the last renewal is so old that the lock may soon be taken over."""
        return time.monotonic() - self._beaten > STALE_SECONDS - 2 * BEAT_SECONDS

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found["token"] == self._about["token"]

    def _touch(self) -> dict[str, Any] | None:
        """Renew the lock if this job still holds it; return the content of the lock."""
        began = time.monotonic()  # before the request, so that a renewal never counts as younger than it is
        found, version = self._slot.read()
        if not self._is_mine(found):
            return found
        if not self._slot.swap(version, self._about | {"beat": time.time()}):
            return self._slot.read()[0]  # somebody else changed the lock in between
        self._beaten = began
        return found

    def _beat(self) -> None:
        """Renew the lock until it is given up or lost; runs in a thread."""
        while not self._left.wait(BEAT_SECONDS):
            # A server may be away for a moment. check() notices if it stays away, and if the lock is damaged.
            with suppress(OSError, LockedError):
                if not self._is_mine(self._touch()):
                    return

    def _leave(self) -> None:
        """Stop renewing the lock, and remove it."""
        self._left.set()
        self._beating.join()
        # A lock that is left behind is taken over, since its process has ended.
        with suppress(OSError, LockedError):
            found, version = self._slot.read()
            if self._is_mine(found):
                self._slot.swap(version, None)


@contextmanager
def held(root: Path, job: str) -> Iterator[Lock]:
    """Hold the store in ``root`` for a job; the lock is the file or object ``ROOT.lock`` beside it.

    The lock of a holder that is gone is taken over. A holder on this machine is gone if its process has
    ended. A holder on another machine counts as gone if it has not renewed its lock for 5 minutes.

    Parameters
    ----------
    root
        The run folder.
    job
        Name of the job, for messages.

    Raises
    ------
    LockedError
        If another job holds the store, or the lock is damaged; the message is one line.
    OSError
        If the store cannot be reached, or its S3 server has no conditional writes.
    """
    check_answers(root)
    slot = slot_of(root)
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


def _take(slot: Slot, about: dict[str, Any], root: Path) -> None:
    """Take the lock, or raise LockedError if a living job holds it."""
    while True:  # again if another job changed the lock between the read and the write
        found, version = slot.read()
        if found is not None and found["token"] == about["token"]:
            return  # an earlier request of ours wrote it, but its answer was lost
        if found is not None and _alive(found):
            raise LockedError(
                f"{root} is in use: {_named(found)}. Wait until it ends, or choose another store; the lock "
                "of a job that was killed is taken over automatically"
            )
        if slot.swap(version, about):
            return


def _check_conditions(slot: Slot, about: dict[str, Any], root: Path) -> None:
    """Raise OSError if the S3 server makes writes whose condition is false."""
    # The lock exists now, so neither a write that needs its absence nor one with a wrong version may succeed.
    if slot.swap(None, about) or slot.swap(slot.none_such, about):
        raise OSError(
            f"{root}: its S3 server ignores conditional writes (If-None-Match, If-Match), so that two jobs "
            "could run there at once; use a server that supports them"
        )


def holder(root: Path) -> str | None:
    """Return the job, process and machine that hold the store in ``root``, in words; None if none does.

    Raises
    ------
    LockedError
        If the lock is damaged.
    """
    found, _ = slot_of(root).read()
    return _named(found) if found is not None and _alive(found) else None


def _alive(found: dict[str, Any]) -> bool:
    """Whether the holder of a lock is alive, or may be."""
    # Processes of another machine or container cannot be looked up here: only their renewals count.
    if (found["host"], found.get("processes")) != (socket.gethostname(), _process_namespace()):
        return time.time() - float(found["beat"]) < STALE_SECONDS
    if found["pid"] == os.getpid():
        return found["token"] in _HELD  # otherwise an earlier attempt of this process could not remove it
    try:
        holder = psutil.Process(found["pid"])
        ended = holder.status() == psutil.STATUS_ZOMBIE
        # The system may have given the process id to a new process, which has another start time.
        return not ended and bool(_started(holder) == found["started"])
    except psutil.NoSuchProcess:
        return _hidden(found["pid"])


def _hidden(pid: int) -> bool:
    """Whether the process exists and belongs to another user, whose processes /proc may hide."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _started(process: psutil.Process) -> float:
    """Return the seconds from the machine's start to the process's start.

    Setting the clock does not change this number.
    """
    return round(process.create_time() - psutil.boot_time(), 2)


def _process_namespace() -> str | None:
    """Return the process namespace; None on a system without namespaces.

    Containers may share the host's name, but each has its own process ids.
    """
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    return None


def _named(found: dict[str, Any]) -> str:
    """Return the holder of a lock in words."""
    told = f"job {found['job']}, process {found['pid']} on {found['host']}, since {found['since']}"
    return " ".join(told.split())
