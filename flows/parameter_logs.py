"""Prefect's log line about parameters that are no valid job, without the parameters."""

from __future__ import annotations

import logging

_BEGINNING = "Parameter validation failed"


def _without_values(record: logging.LogRecord) -> bool:
    """Take the values out of Prefect's line: a password in them would be kept with the logs of the server."""
    if record.getMessage().startswith(_BEGINNING):
        record.msg, record.args = f"{_BEGINNING}; the error of the flow run says what is wrong", None
    return True


def keep_values_out_of_logs() -> None:
    """Let Prefect log that parameters are invalid, and not what they are."""
    logging.getLogger("prefect.flows").addFilter(_without_values)  # a second call adds no second filter
