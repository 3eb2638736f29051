"""The image files below a folder, and what else lies there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from storage.datasets.formats import ARRAY, is_hidden, suffixes
from storage.errors import one_line
from storage.places import files_under, is_remote


def image_names(root: Path) -> tuple[list[str], dict[str, int]]:
    """Find the image files below a folder, by their suffixes in any case.

    Arrays (``*.npy``) are images where the folder holds no other ones, since they lie beside images for many
    reasons.

    Links are followed. A link that leads nowhere, a pipe or a device with the name of an image counts as an
    image, which cannot be read later. Hidden names and ``__MACOSX`` are left out.

    Returns
    -------
    names
        Paths from ``root``, sorted by their parts.
    left_out
        The number of files and folders that are left out, by what they are, e.g. ``*.txt``.

    Raises
    ------
    ValueError
        If a folder cannot be listed; the message is one line.
    """
    left_out: Counter[str] = Counter()
    names: list[str] = []
    arrays: list[str] = []
    known = suffixes()
    for name in shown_names(root, left_out):
        suffix = suffix_of(name)
        if suffix == ARRAY:
            arrays.append(name)
        elif suffix not in known:
            left_out[f"*{suffix}" if suffix else "files without a suffix"] += 1
        else:
            names.append(name)
    if names and arrays:
        left_out[f"*{ARRAY}"] = len(arrays)
    names = names or arrays
    return sorted(names, key=lambda name: name.split("/")), dict(left_out)


def shown_names(root: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yield the paths from ``root`` of everything below it that is no folder and not hidden.

    What is left out is counted, by what it is.
    """
    for name in files_under(root) if is_remote(root) else _entries(root, left_out):
        # An object for each of a million paths would take seconds.
        if (name.startswith(".") or "/." in name or "__" in name) and is_hidden(PurePath(name)):
            left_out["hidden files"] += 1
        else:
            yield name


def suffix_of(name: str) -> str:
    """Return the suffix of a path as pathlib does, in lower case."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return last[dot:].lower() if 0 < dot < len(last) - 1 else ""


def _entries(root: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yield the paths from ``root`` of everything below it that is no folder."""
    for top in _scanned(root):
        if not _is_folder(top):
            yield top.name
        elif is_hidden(PurePath(top.name)):
            left_out["hidden folders"] += 1
        else:
            yield from _below(Path(top.path), f"{top.name}/", {os.path.realpath(root)}, left_out)


def _below(folder: Path, prefix: str, seen: set[str], left_out: Counter[str]) -> Iterator[str]:
    """Yield everything below one of the folders in the root.

    No folder is read twice, because links may form a circle.
    """
    waiting = [(folder, prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            left_out["links to folders that are read already"] += 1
            continue
        seen.add(real)
        for entry in _scanned(folder):
            if not _is_folder(entry):
                yield prefix + entry.name
            elif is_hidden(PurePath(entry.name)):
                left_out["hidden folders"] += 1
            else:
                waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"dataset.path: {folder} cannot be listed: {one_line(error)}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # e.g. a link to itself
        return False
