"""Check that what a job names is a file, before it is opened."""

from __future__ import annotations

import stat
from pathlib import Path

_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}


def check_file(key: str, path: Path) -> None:
    """Check that there is a file; a pipe or a device is not opened, because reading it may never end.

    Raises
    ------
    ValueError
        In one line that begins with ``key``.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ValueError(f"{key}: there is no file {path}") from error
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS.items() if test(mode)), "a device")
        raise ValueError(f"{key}: {path} is {kind}, not a file; give the path of a file")


def check_folder(key: str, folder: Path) -> None:
    """Check that a folder holds only files and folders, because a library will open what it finds there.

    Raises
    ------
    ValueError
        In one line that begins with ``key`` and names what is neither.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir():
            check_file(key, path)
