"""Signals that ask to stop, of work with processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def kept_from_children(
    numbers: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """Processes that are spawned inside never take these signals: the one that works with them decides.

    Ctrl-C, and a scheduler that ends a job, send them to every process. Blocked signals are inherited, so
    that this holds from a process's first instruction on; those of threads that start inside, too. Here they
    are delivered at the end of the block.
    """
    resource_tracker.ensure_running()  # it unblocks both when it is first started, which may not be inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
