"""P-TAME's training in several processes of this machine, one a GPU, that share their gradients."""

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

import torch
from torch import distributed

from tasks.signals import kept_from_children
from tasks.training.fitting import Emit, Event, Plan, StoppedError, TrainingError, fit

GRACE_SECONDS = 60.0  # for processes to end, with a checkpoint where they can, before they are killed


def fit_in_processes(plan: Plan, emit: Emit, stopped: Callable[[], bool]) -> None:
    """:func:`tasks.training.fitting.fit` in as many processes as the plan says (PyTorch's DDP).

    None of them is left when this returns or raises. They end with this process, however that ends.

    Raises
    ------
    Exception
        What ``emit`` raises, after the processes were stopped; what one of them raised, in its own words.
    TrainingError
        If a process died without a word.
    """
    context = torch.multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    with TemporaryDirectory() as folder:
        told = (plan, f"file://{folder}/rendezvous", events, stop)
        processes = [context.Process(target=_fit_one, args=(r, *told)) for r in range(plan.order.processes)]
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


def _events(events: Any, processes: Sequence[BaseProcess]) -> Iterator[Event | None]:
    """What rank 0 tells, and None now and then, until all processes have ended.

    An error that one of them sends is raised, unless it has lost another one that was killed.
    """
    while True:
        codes = [process.exitcode for process in processes]  # first: what they sent before is in the queue
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
    """Raise TrainingError if a process has died."""
    for rank, code in enumerate(codes):
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise TrainingError(f"process {rank} of the training {how}; run the same job again to continue")


def _sent(events: Any) -> Iterator[Any]:
    while True:
        try:
            yield events.get(timeout=0.1)
        except Empty:
            return


def _end(processes: Sequence[BaseProcess], events: Any) -> None:
    """Wait for the processes, which were told to stop, and kill those that do not."""
    deadline = time.monotonic() + GRACE_SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        for _ in _sent(events):  # a process does not end before what it sends is taken
            pass
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _fit_one(rank: int, plan: Plan, address: str, events: Any, stop: Any) -> None:
    """What one of several processes does."""
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        _meet(rank, plan.order.processes, address)
        fit(plan, rank, events.put, stop.is_set)
    except StoppedError as error:
        if rank == 0:  # all of them stop, and this one's checkpoint is written
            events.put(error)
    except Exception as error:
        error.add_note(traceback.format_exc())  # a traceback of its own does not travel
        events.put(error)
        events.close()
        events.join_thread()  # before the others fail because this one has left
        sys.exit(1)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _meet(rank: int, processes: int, address: str) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=processes)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
