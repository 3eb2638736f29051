"""The lock of a store: one holder, named; taken over from the dead, never from the living."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from places import ROOT
from storage import lock, lock_slots
from storage.lock import LockedError, LostLockError, held


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_second_job_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with held(tmp_path / "run", "first"):
        with (
            pytest.raises(
                LockedError, match=rf"in use: job first, process {os.getpid()} on .* since"
            ) as refusal,
            held(tmp_path / "run", "second"),
        ):
            pass
        assert "\n" not in str(refusal.value)
        with held(tmp_path / "other", "second"):
            pass
    with held(tmp_path / "run", "second"):
        pass
    assert not (tmp_path / "run.lock").exists()


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run", "first"):
        raise ZeroDivisionError
    with held(tmp_path / "run", "second"):
        pass


HOLD = "import sys, time; from pathlib import Path; from storage.lock import held\n\
with held(Path(sys.argv[1]), 'first'): print('held', flush=True); time.sleep(60)"


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_holder_is_followed_at_once_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(LockedError, match=f"process {process.pid}"), held(tmp_path / "run", "second"):
            pass
        process.kill()  # and not waited for: a zombie holds nothing
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
        with held(tmp_path / "run", "second"):
            pass
    finally:
        process.kill()
        process.wait()


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    with held(tmp_path / "run", "first"):
        rewrite(tmp_path / "run.lock", pid=os.getppid(), started=0.0)
        with held(tmp_path / "run", "second"):
            pass


def test_what_an_earlier_attempt_of_this_process_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    with held(tmp_path / "run", "first"):
        left = (tmp_path / "run.lock").read_text()
    (tmp_path / "run.lock").write_text(left)
    with held(tmp_path / "run", "second"):
        pass


def test_a_clock_that_is_set_does_not_end_a_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = holder(tmp_path / "run")
    try:
        started = psutil.boot_time()
        for module in (psutil, psutil._psplatform):
            monkeypatch.setattr(module, "boot_time", lambda: started + 100)
        with pytest.raises(LockedError), held(tmp_path / "run", "second"):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_holder_that_could_give_no_sign_of_life_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(tmp_path / "run", "first") as first:
        monkeypatch.setattr(lock_slots.FileSlot, "read", lambda self: (_ for _ in ()).throw(OSError("away")))
        first.check()
        first._beaten -= lock.STALE_SECONDS
        with pytest.raises(OSError, match="away"):
            first.check()


def test_a_holder_that_waits_for_an_answer_for_too_long_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(tmp_path / "run", "first") as first:

        def read(self: lock_slots.FileSlot) -> None:
            first._beaten -= lock.STALE_SECONDS
            raise OSError("away")

        monkeypatch.setattr(lock_slots.FileSlot, "read", read)
        with pytest.raises(OSError, match="away"):
            first.check()


def test_a_holder_that_is_overtaken_while_it_gives_a_sign_of_life_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(tmp_path / "run", "first") as first:

        def swap(self: lock_slots.FileSlot, version: bytes, new: dict[str, Any]) -> bool:
            rewrite(tmp_path / "run.lock", job="second", token="another")
            return False

        monkeypatch.setattr(lock_slots.FileSlot, "swap", swap)
        first._beaten -= lock.STALE_SECONDS
        with pytest.raises(LostLockError, match="job second"):
            first.check()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"5",
        b"null",
        b"\xff\xfe",
        b'{"host": "x"}',
        b"[" * 100_000,
        b" " * (lock_slots.MOST_BYTES + 1),
        {"pid": -5},
        {"pid": 10**30},
        {"pid": "7"},
        {"beat": "now"},
        {"host": None},
    ],
)
def test_a_damaged_lock_is_named_and_never_taken_over(tmp_path: Path, text: bytes | dict[str, Any]) -> None:
    path = tmp_path / "run.lock"
    if isinstance(text, dict):
        with held(tmp_path / "run", "first"):
            found = json.loads(path.read_text())
        text = json.dumps(found | text).encode()
    path.write_bytes(text)
    with pytest.raises(LockedError, match=r"damaged lock.*delete this file and run") as refusal:
        held(tmp_path / "run", "second").__enter__()
    assert "\n" not in str(refusal.value)
    with pytest.raises(LockedError, match="damaged lock"):
        lock.holder(tmp_path / "run")
    assert path.read_bytes() == text, "it was stolen"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_in_the_place_of_a_lock_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.lock"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda at: at.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(LockedError, match=f"damaged lock.* is a {kind}, not a file"):
        held(tmp_path / "run", "second").__enter__()


def test_nobody_else_may_write_the_lock_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with held(tmp_path / "run", "first"):
            assert (tmp_path / "run.lock").stat().st_mode & 0o777 == 0o664
            os.umask(0o077)
        with held(tmp_path / "run", "first"):
            assert (tmp_path / "run.lock").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_another_users_process_that_proc_does_not_show_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder(tmp_path / "run")
    try:

        def nothing(pid: int) -> None:
            raise psutil.NoSuchProcess(pid)

        def forbidden(pid: int, number: int) -> None:
            assert (pid, number) == (process.pid, 0)
            raise PermissionError

        about = psutil.Process()
        monkeypatch.setattr(lock.psutil, "Process", lambda pid=None: about if pid is None else nothing(pid))
        monkeypatch.setattr(lock.os, "kill", forbidden)
        with pytest.raises(LockedError), held(tmp_path / "run", "second"):
            pass
    finally:
        monkeypatch.undo()
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("age", "refused"), [(lock.STALE_SECONDS - 10, True), (lock.STALE_SECONDS + 10, False)]
)
def test_a_holder_on_another_machine_counts_until_it_has_been_silent_for_long(
    tmp_path: Path, age: float, refused: bool
) -> None:
    with held(tmp_path / "run", "first") as first:
        rewrite(tmp_path / "run.lock", host="elsewhere")
        os.utime(tmp_path / "run.lock", (time.time() - age,) * 2)
        if refused:
            with pytest.raises(LockedError, match="on elsewhere"), held(tmp_path / "run", "second"):
                pass
            first.check()
        else:
            with (
                held(tmp_path / "run", "second"),
                pytest.raises(LostLockError, match=r"taken over \(job second"),
            ):
                first.check()


@pytest.mark.parametrize("ahead", [-1e5, 1e5])
def test_clocks_that_disagree_about_the_time_take_no_lock_from_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """Neither the holder's counts nor ours, but that of the disk, which stamps both files."""
    path, clock = tmp_path / "run.lock", time.time
    with held(tmp_path / "run", "first"):
        rewrite(path, host="elsewhere", beat=clock() - ahead)
        with pytest.raises(LockedError, match="on elsewhere"), held(tmp_path / "run", "second"):
            pass
        monkeypatch.setattr(lock.time, "time", lambda: clock() + ahead)
        with pytest.raises(LockedError, match="on elsewhere"), held(tmp_path / "run", "second"):
            pass
        os.utime(path, (clock() - lock.STALE_SECONDS - 10,) * 2)
        with held(tmp_path / "run", "second"):
            pass


def test_who_may_not_write_beside_the_store_can_still_see_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    with held(tmp_path / "run", "first"):
        rewrite(tmp_path / "run.lock", host="elsewhere")
        os.utime(tmp_path / ".run.lock.clock", (0, 0))  # of an earlier job
        monkeypatch.setattr(lock.os, "utime", forbidden)
        assert "first" in (lock.holder(tmp_path / "run") or "")
        monkeypatch.setattr(lock, "STALE_SECONDS", 0.0)
        assert lock.holder(tmp_path / "run") is None


def test_a_holder_gives_signs_of_life_until_it_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    path = tmp_path / "run.lock"
    with held(tmp_path / "run", "first"):
        rewrite(path, beat=0.0)
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["beat"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        rewrite(path, token="another")
        time.sleep(0.3)
        assert json.loads(path.read_text())["token"] == "another"
    assert path.exists()  # it is the other's


def _try(root: Path, barrier: object, wins: object) -> None:
    barrier.wait()
    try:
        with held(root, str(os.getpid())):
            wins.put(os.getpid())
            time.sleep(1)
    except LockedError:
        pass


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_try, args=(tmp_path / "run", barrier, wins)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert wins.get() in {process.pid for process in processes}
    assert wins.empty()
