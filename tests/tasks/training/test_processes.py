"""Several processes train as one, and none is left behind, whatever ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import psutil
import pytest
import torch

from explainers.models.ptame_head import load_head
from places import ROOT
from tasks.training.fitting import StoppedError, TrainingError, TrainingEvent, TrainingSetup, fit
from tasks.training.processes import _events, fit_in_processes
from training_runs import SlowFolder, never, plan_of


def in_two(setup: TrainingSetup) -> TrainingSetup:
    """The same training by two processes."""
    return replace(setup, order=replace(setup.order, batch=setup.order.batch // 2, processes=2))


def test_two_processes_train_as_one_with_two_parts_a_batch(tmp_path: Path) -> None:
    """Running means apart, which belong to each process's own images."""
    parts = plan_of(tmp_path / "parts", steps=4, accumulate=2, numbers=1)
    fit(parts, 0, lambda _: None, never)
    two = in_two(plan_of(tmp_path / "two", steps=4, numbers=1))
    events: list[TrainingEvent] = []
    fit_in_processes(two, events.append, never)
    assert [event.step for event in events if not event.picture] == [1, 2, 3, 4]
    one, other = load_head(parts.folder.head)[0], load_head(two.folder.head)[0]
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4, msg=name)
    assert not multiprocessing.active_children()


def test_a_signal_to_all_ends_with_a_checkpoint(tmp_path: Path) -> None:
    """Also where the first process takes long to write it, and the others have nothing left to do."""
    setup = in_two(plan_of(tmp_path, steps=4000, numbers=1))
    setup = replace(setup, folder=SlowFolder(setup.folder.root, setup.folder.identity))
    told: list[int] = []

    def emit(event: TrainingEvent) -> None:
        told.append(event.step)
        if event.step == 2:
            (tmp_path / "slow").touch()
            for process in multiprocessing.active_children():
                for number in (signal.SIGINT, signal.SIGTERM):
                    os.kill(process.pid, number)

    with pytest.raises(StoppedError, match="of 4000") as stopped:
        fit_in_processes(setup, emit, lambda: len(told) >= 2)
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert str(stopped.value) == f"stopped after step {step} of 4000; run the same job again to continue"
    assert told == list(range(1, step + 1))
    assert not multiprocessing.active_children()


def test_no_process_outlives_a_failure_to_tell(tmp_path: Path) -> None:
    setup = plan_of(tmp_path, steps=4000, numbers=1)

    def emit(_: TrainingEvent) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fit_in_processes(setup, emit, never)
    assert not multiprocessing.active_children()
    assert setup.folder.checkpoint.exists()
    assert not setup.folder.head.exists()


@pytest.mark.parametrize(
    ("codes", "sent", "told"),
    [
        ([None, -9], [], "^process 1 of the training was killed by signal 9; run the same job again"),
        ([None, -9], [RuntimeError("lost")], "^process 1 of the training was killed by signal 9"),
        ([3, None], [], "^process 0 of the training ended with exit code 3"),
        ([1, 1], [RuntimeError("first"), RuntimeError("second")], "^first$"),
    ],
)
def test_a_process_that_dies_is_told_with_what_it_died_of(
    codes: list[int | None], sent: list[Exception], told: str
) -> None:
    events: Queue[TrainingEvent | Exception] = Queue()
    for event in (TrainingEvent(1, {}), *sent):
        events.put(event)
    found = _events(events, [SimpleNamespace(exitcode=code) for code in codes])
    assert next(found) == TrainingEvent(1, {})
    with pytest.raises((RuntimeError, TrainingError), match=told):
        next(found)


ORPHANS = """
import multiprocessing, sys
from pathlib import Path
from training_runs import never, plan_of
from tasks.training.processes import fit_in_processes

if __name__ == "__main__":
    setup = plan_of(Path(sys.argv[1]) / "run", steps=10_000, numbers=1)
    emit = lambda _: print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    fit_in_processes(setup, emit, never)
"""


@pytest.mark.faults
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ORPHANS)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as parent:
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) == 1
    assert not psutil.wait_procs(children, timeout=20)[1]


MEETING = """
import os, psutil, sys, torch
from tasks.training.processes import _meet

_meet(int(sys.argv[1]), 2, sys.argv[2])
torch.distributed.all_reduce(torch.ones(3))
print(*{at.laddr.ip.removeprefix("::ffff:") for at in psutil.Process().net_connections("inet")})
print(os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"])
torch.distributed.barrier()
"""


def test_nobody_outside_the_machine_can_join(tmp_path: Path) -> None:
    """Where the machine's name leads, which may be a network, is where gloo listens by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("SOCKET_IFNAME")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, str(rank), f"file://{tmp_path}/rendezvous"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    for process in processes:
        address, gloo, nccl = process.communicate(timeout=120)[0].split()
        assert address == "127.0.0.1"  # also without the variables, on a machine whose name leads there
        assert gloo == nccl
        assert "127.0.0.1" in [at.address for at in psutil.net_if_addrs()[gloo]]
