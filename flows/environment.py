"""Variables of this process's environment: those that child processes need for a time, and those of logs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def keep_logs_off_the_terminal() -> None:
    """Let Prefect and MLflow log to their servers alone, where the user has not chosen otherwise.

    They then send no usage data either, of which Prefect would give notice on the terminal. It has to be
    called before Prefect is imported.
    """
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


@contextmanager
def restored(names: Iterable[str]) -> Iterator[None]:
    """A context manager: at the end these variables are as they were before, set or not."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
