"""Values that no key of a job takes, whatever the key: checked before each key is."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from typing import Any

from storage.credentials import credential_key, has_credential, is_plain_address

DEEPEST = 20  # most tables and lists inside each other
LONGEST = 10_000  # most characters of a text
LARGEST = 2**63 - 1  # TOML's largest whole number
_INSTEAD = {
    "tracking": "give MLflow's in the variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, and a database's in its own file, such as ~/.pgpass",
    "store": "give those of S3 in the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in "
    "AWS_PROFILE",
    "cluster": "give it in Dask's configuration, or in a variable of the environment that the cluster reads",
}
_INSTEAD["dataset"] = _INSTEAD["store"]
_OTHERWISE = "give it in a variable of the environment"


def refuse_values(raw: Mapping[str, Any]) -> None:
    """Check all values of a job that was not validated yet.

    Raises
    ------
    ValueError
        In one line that begins with the key, for a password or a token (it would be written into the run
        folder and shown by Prefect and MLflow), a text that is too long or has a character that no file name
        has, a number that is not finite or too large, a date, or tables nested too deeply. The value of a
        text is not part of the message.
    """
    for key, value, depth in _every(raw):
        told = _complaint(value, depth)
        if told is not None:
            raise ValueError(f"{key}: {told}")
    for key, value, _ in _every(raw):
        if isinstance(value, str) and has_credential(value):
            raise _credential(key)
    tracking = raw.get("tracking")
    if isinstance(tracking, str) and not is_plain_address(tracking):
        raise _credential("tracking")
    for key in ("cluster", "dataset"):
        table = raw.get(key)
        arguments = table.get("arguments") if isinstance(table, Mapping) else None
        found = credential_key(arguments) if isinstance(arguments, Mapping) else None
        if found is not None:
            raise _credential(f"{key}.arguments.{found}")


def _every(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Yield every value at any depth with its key and its depth; too deep values are not entered."""
    waiting: list[tuple[str, Any, int]] = [(str(key), value, 1) for key, value in raw.items()][::-1]
    while waiting:
        key, value, depth = waiting.pop()
        yield key, value, depth
        if depth > DEEPEST:
            continue
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{inner}", each, depth + 1) for inner, each in value.items()][::-1]
        elif isinstance(value, list | tuple):
            waiting += [(f"{key}[{index}]", each, depth + 1) for index, each in enumerate(value)][::-1]


def _complaint(value: Any, depth: int) -> str | None:
    """Return what is wrong with a value that no key takes; None for any other value."""
    if depth > DEEPEST:
        return f"tables and lists are nested more than {DEEPEST} deep"
    if isinstance(value, str):
        return _complaint_about_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, and is {value}"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"is a number of {value.bit_length()} bits; the largest whole number is {LARGEST}"
    if isinstance(value, datetime.date | datetime.time):
        return "is a date or a time, which no key takes; put it in quotes if it is a text"
    return None


def _complaint_about_text(text: str) -> str | None:
    if len(text) > LONGEST:
        return f"has {len(text)} characters; a text has at most {LONGEST}"
    if "\0" in text:
        return "has a NUL character, which neither a file name nor a database can hold; take it out"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half a character (a surrogate), which cannot be written as UTF-8; take it out"
    return None


def _credential(key: str) -> ValueError:
    """Return the error for a password or a token; it names the key and never the value."""
    of_callable = key.startswith("dataset.arguments")
    instead = _OTHERWISE if of_callable else _INSTEAD.get(key.partition(".")[0], _OTHERWISE)
    return ValueError(
        f"{key}: holds a password or a token, which would be written into the run folder and shown by "
        f"Prefect and MLflow; leave it out and {instead}"
    )
