"""Log lines of tasks on Dask workers, sent to the logs of their Prefect task runs."""

from __future__ import annotations

import logging

from distributed import Client, Worker, WorkerPlugin
from prefect.context import TaskRunContext
from prefect.logging.handlers import APILogHandler

from storage.characters import shown

LOGGERS = ("tasks", "explainers", "storage", "py.warnings")


class _TaskRunHandler(APILogHandler):
    """Send log lines to Prefect if they come from a task run; Prefect has no place for other lines."""

    def emit(self, record: logging.LogRecord) -> None:
        if TaskRunContext.get() is None:
            return
        # A line may quote names and errors of files. Only Python's warnings have several lines.
        lines = record.getMessage().split("\n") if record.name == "py.warnings" else [record.getMessage()]
        record.msg, record.args = "\n".join(map(shown, lines)), None
        super().emit(record)


class WorkerLogs(WorkerPlugin):
    """Dask plug-in that sends the package's log lines and Python's warnings, on any kind of cluster."""

    name = "floodlit-logs"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Add the handler to the package's loggers; Dask calls this when a worker starts."""
        logging.captureWarnings(True)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            # Workers of one process share its loggers: a second handler would send every line twice.
            if not any(isinstance(handler, _TaskRunHandler) for handler in logger.handlers):
                logger.addHandler(_TaskRunHandler())
                logger.setLevel(logging.INFO)


def send_logs(client: Client) -> None:
    """Make all workers send their tasks' log lines to Prefect, also workers that start later."""
    client.register_plugin(WorkerLogs())
