"""Trains P-TAME's head in several processes on this machine, one per GPU, that share their gradients."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from queue import Empty
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import psutil
import torch
from torch import distributed

from tasks.signals import kept_from_children
from tasks.training.fitting import Emit, StoppedError, TrainingError, TrainingEvent, TrainingSetup, fit

GRACE_SECONDS = 60.0  # processes may take this long to end, and to save a checkpoint, before they are killed


def fit_in_processes(setup: TrainingSetup, emit: Emit, stopped: Callable[[], bool]) -> None:
    """Run :func:`tasks.training.fitting.fit` in as many processes as the setup says (PyTorch's DDP).

    No process is left when this returns or raises. If this process ends, however it ends, they end too.

    Parameters
    ----------
    setup
        The training.
    emit
        Receives the events of rank 0, in this process.
    stopped
        Is asked several times per second whether to stop.

    Raises
    ------
    Exception
        The error that ``emit`` raised, after the processes have stopped; or the error that one of the
        processes raised.
    TrainingError
        If a process died without reporting an error.
    """
    context = torch.multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    with TemporaryDirectory() as folder:
        shared = (setup, f"file://{folder}/rendezvous", events, stop)
        processes = [
            context.Process(target=_fit_one, args=(rank, *shared)) for rank in range(setup.order.processes)
        ]
        try:
            with kept_from_children():
                for process in processes:
                    process.start()
            for event in _events(events, processes):
                if stopped():
                    stop.set()
                if event is not None:
                    emit(event)
        finally:
            stop.set()
            _end(processes, events)


def _events(events: Any, processes: Sequence[BaseProcess]) -> Iterator[TrainingEvent | None]:
    """Yield the events of rank 0, and None from time to time, until all processes have ended.

    An error that a process sends is raised. If another process was killed, which is then the cause of that
    error, TrainingError is raised instead.
    """
    while True:
        # Exit codes are read first: whatever a process sent before it ended is in the queue by then.
        codes = [process.exitcode for process in processes]
        for event in _sent(events):
            if isinstance(event, Exception):
                _check([min(process.exitcode or 0, 0) for process in processes])
                raise event
            yield event
        _check(codes)
        if None not in codes:
            return
        yield None


def _check(codes: Sequence[int | None]) -> None:
    """Raise TrainingError if a process has failed; ``codes`` are exit codes, None while it runs."""
    for rank, code in enumerate(codes):
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise TrainingError(f"process {rank} of the training {how}; run the same job again to continue")


def _sent(events: Any) -> Iterator[Any]:
    """Yield what is in the queue until nothing comes for 0.1 s."""
    while True:
        try:
            yield events.get(timeout=0.1)
        except Empty:
            return


def _end(processes: Sequence[BaseProcess], events: Any) -> None:
    """Wait for the processes, which have been asked to stop, and kill those that do not end in time."""
    deadline = time.monotonic() + GRACE_SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        for _ in _sent(events):  # a process only ends after its messages have been taken from the queue
            pass
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _fit_one(rank: int, setup: TrainingSetup, address: str, events: Any, stop: Any) -> None:
    """The main function of a process: join the others and train."""
    Thread(target=_end_with_parent, daemon=True).start()  # a killed parent cannot end its children
    try:
        _meet(rank, setup.order.processes, address)
        fit(setup, rank, events.put, stop.is_set)
    except StoppedError as error:
        if rank == 0:  # all processes stop together, and rank 0 has written the checkpoint
            events.put(error)
    except Exception as error:
        error.add_note(traceback.format_exc())  # pickling an exception loses its traceback
        events.put(error)
        events.close()
        events.join_thread()  # sent before this process leaves, which makes the others fail too
        sys.exit(1)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _meet(rank: int, processes: int, address: str) -> None:
    """Join the process group, on the GPU of this rank if there are GPUs.

    The processes listen on the loopback interface alone. Otherwise they would listen where the machine's own
    name leads, which may be a network, and they ask nobody for a key.
    """
    addresses = psutil.net_if_addrs().items()
    loopback = next(name for name, at in addresses if any(each.address == "127.0.0.1" for each in at))
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, loopback)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=processes)


def _end_with_parent() -> None:
    """End this process when its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # sys.exit would only end this thread
