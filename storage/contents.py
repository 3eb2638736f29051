"""What lies in a run folder, whether or not it belongs there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import FILE, FOLDER, PARTIAL, UnreadableError, kind_of
from storage.layout import Layout
from storage.places import files_under, is_remote


class BlockedError(FloodlitError, ValueError):
    """Something lies in the run folder where the run needs a file or a folder."""


@dataclass(frozen=True)
class Entry:
    """Something in a run folder: its kind in words, with the article, and its size in bytes."""

    kind: str
    size: int


def listed(root: Path) -> dict[str, Entry]:
    """Return everything below a run folder, by its path from there; links are not followed.

    Files that a killed process left while it was writing are left out.

    Raises
    ------
    UnreadableError
        If a folder cannot be listed; the message is one line.
    """
    if is_remote(root):  # S3 holds nothing else than objects
        found = {path: Entry(FILE, size) for path, size in files_under(root).items()}
    else:
        found, folders = {}, [""]
        while folders:
            folder = folders.pop()
            for name, entry in _entries(root / folder):
                path = f"{folder}/{name}" if folder else name
                found[path] = entry
                if entry.kind == FOLDER:
                    folders.append(path)
    return {path: found[path] for path in sorted(found) if not path.endswith(PARTIAL)}


def _entries(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Yield what lies in a folder, by name; what a running job removes meanwhile is left out."""
    try:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    about = entry.stat(follow_symlinks=False)
                    yield entry.name, Entry(kind_of(about.st_mode), about.st_size)
    except OSError as error:  # e.g. a damaged disk, or a path that is too long
        raise UnreadableError(f"{folder} cannot be listed: {one_line(error, LONGEST)}") from error


def blocked(layout: Layout, entries: dict[str, Entry]) -> dict[str, str]:
    """Return the paths where the run cannot write, with the reason for each.

    A folder of the run must be a folder, and no link, which may lead out of the run. A folder in the place
    of a file is removed by the run if it is empty, and blocks if it is not.
    """
    full = {path.rpartition("/")[0] for path in entries}
    told = {}
    for path, entry in entries.items():
        if entry.kind == FOLDER:
            if path in full and layout.is_file(path):
                told[path] = "is a folder, but the run needs a file there; move the folder away"
        elif layout.is_folder(path):
            told[path] = f"is {entry.kind}, but the run needs a folder there; move it away"
    return told


def refuse_blocked(root: Path, layout: Layout) -> None:
    """Check that the run can write all of its files, and none outside of its folder.

    Raises
    ------
    BlockedError
        If it cannot; the message names the first obstacle.
    """
    for path, reason in blocked(layout, listed(root)).items():
        raise BlockedError(f"{root / path} {reason}")
