"""Keeps stop signals from child processes, so that the parent decides how they end."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def kept_from_children(
    numbers: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """A context manager: processes and threads that are started inside never receive these signals.

    Ctrl-C, and a scheduler that ends a job, send them to every process. Only the process that works with the
    children should decide. Blocked signals are inherited, so this holds from the first instruction of a
    child. In this process they are delivered at the end of the block.
    """
    # The first start of the resource tracker unblocks both signals, so it must not happen inside the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
