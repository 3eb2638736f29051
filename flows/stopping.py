"""Signals that stop a command or a flow: the first one is heard, later ones leave its end alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal


@contextmanager
def stopped_once() -> Iterator[None]:
    """Ctrl-C, SIGTERM or a closed terminal raises KeyboardInterrupt, once.

    Stopping takes seconds, and whoever waits may press Ctrl-C again. A second interrupt in the middle of it
    would leave processes and a locked store behind. While the flow runs, Prefect catches SIGTERM, ends the
    flow and passes the signal on to this handler.
    """
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it, and so must the job then
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Exception as error:
        if stopping:  # libraries turn the interrupt into errors of their own, e.g. pydantic
            raise KeyboardInterrupt from error
        raise
    finally:
        if not stopping:  # else Python itself is about to end, which takes a moment too
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def one_sigterm() -> Iterator[None]:
    """A context manager: after a SIGTERM that ends the block, further ones do not disturb the flow's end.

    Prefect's handler would raise again, while the workers are stopped. Prefect puts the earlier handler back
    when the flow has ended.
    """
    try:
        yield
    except TerminationSignal:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
