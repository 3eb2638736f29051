"""Paths as a page tells them: a report is sent to others, whom users of this machine do not concern."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HOME = re.compile(r"(?:(?<![^\s\"'(\[=:])|(?<=:///))(?:/(?:home|Users)/[^/\s\"'<>]+|/root)(?=/|$)")
_SHARED = 2  # folders that paths have in common at least, without which they belong to nothing in common


def without_home(text: str) -> str:
    """Return a text in which home folders are written as ``~``."""
    return _HOME.sub("~", text) if "/" in text else text


def common_folder(job: Mapping[str, Any]) -> str | None:
    """Return the folder below which a run and the local files that its job names lie; None without one.

    A path that shares fewer than two folders with the store, or no more than a home folder, does not count.
    The job of a run holds absolute paths, whatever its file said, so that this stands for the file's folder.
    """
    store = next(_paths(job.get("store")), None)
    if store is None:
        return None
    folder = str(Path(store).parent)
    for path in _paths(job):
        shared = os.path.commonpath([folder, Path(path).parent])
        if _is_common(shared):
            folder = shared
    return folder if _is_common(folder) else None


def from_folder(value: Any, folder: str | None) -> Any:
    """Return a value, or what a table or list holds, with paths below a folder written from that folder."""
    if isinstance(value, Mapping):
        return {key: from_folder(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [from_folder(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    return without_home(value.replace(f"{folder}/", "") if folder else value)


def _paths(value: Any) -> Iterator[str]:
    """Yield the absolute local paths in a value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, str) and Path(value).is_absolute() and "\n" not in value:
        yield value


def _is_common(folder: str) -> bool:
    return len(folder.strip("/").split("/")) >= _SHARED and without_home(folder) != "~"
