"""What tasks say on Dask workers, in the logs of their Prefect task runs."""

from __future__ import annotations

import logging

from distributed import Client, Worker, WorkerPlugin
from prefect.context import TaskRunContext
from prefect.logging.handlers import APILogHandler

LOGGERS = ("tasks", "explainers", "storage", "py.warnings")


class _TaskRunHandler(APILogHandler):
    """Sends to Prefect what is said in a task run; it has no place for anything else."""

    def emit(self, record: logging.LogRecord) -> None:
        if TaskRunContext.get() is not None:
            super().emit(record)


class WorkerLogs(WorkerPlugin):
    """Sends the package's log lines and Python's warnings; works on any kind of cluster."""

    name = "floodlit-logs"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        logging.captureWarnings(True)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            if not any(isinstance(handler, _TaskRunHandler) for handler in logger.handlers):
                logger.addHandler(_TaskRunHandler())
                logger.setLevel(logging.INFO)


def send_logs(client: Client) -> None:
    """Have the workers, and those that come later, tell Prefect what their tasks say."""
    client.register_plugin(WorkerLogs())
