"""Exports a run: checks what can be known before, and writes a folder that is whole or absent."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.files import PARTIAL
from storage.places import is_remote, place
from storage.run import Run
from tasks.export.registry import exports
from tasks.results.comparisons import check_complete


def export(run: Run, to: str, out: str | Path | None = None) -> tuple[Path, list[str]]:
    """Write a complete run in the form of another tool.

    Parameters
    ----------
    to
        The target, a name of :data:`tasks.export.registry.exports`.
    out
        A new or empty folder; by default ``RUN-TARGET`` in the working directory.

    Returns
    -------
    folder, lines
        The folder, and what was written into it.

    Raises
    ------
    ValueError
        In one line: there is no such target, the target cannot hold such a run, the run is not complete, or
        the folder is not empty.
    """
    if to not in exports.names():
        raise ValueError(f"to: there is no target {to[:60]!r}; choose from {', '.join(exports.names())}")
    target = exports.get(to)()
    if run.modality not in target.modalities:
        raise ValueError(
            f"to: {to} holds runs on {' or '.join(sorted(target.modalities))} inputs, and {run.root} is on "
            f"{run.modality} inputs; choose from {', '.join(_fitting(run))}"
        )
    folder = _empty(place(out or f"{run.root.name}-{to}"))
    check_complete(run, "export")
    run.check_arrays(run.inputs, *map(run.saliency, run.explainers))
    # Written under another name and renamed, so that a folder of the export's name is always whole.
    _remove_left(folder)
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
    partial.mkdir(parents=True)
    try:
        with _held(partial):
            lines = target.write(run, partial)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
    except BaseException:  # also at Ctrl-C
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder, [line.replace("FOLDER", shlex.quote(str(folder))) for line in lines]


def _remove_left(folder: Path) -> None:
    """Remove what exports to this folder have left that were killed; those that are at work hold theirs."""
    left = re.compile(rf"{re.escape(folder.name)}\.[0-9a-f]{{32}}{re.escape(PARTIAL)}")
    for each in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if left.fullmatch(each.name) and each.is_dir() and not each.is_symlink():
            with suppress(OSError), _held(each):
                shutil.rmtree(each)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder as long as its process lives; raise OSError if another one holds it."""
    there = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(there)


def _fitting(run: Run) -> list[str]:
    """The targets that can hold runs of this modality."""
    return [name for name in exports.names() if run.modality in exports.get(name).modalities]


def _empty(folder: Path) -> Path:
    """The folder, if an export may be written there."""
    if is_remote(folder):
        raise ValueError(f"out: {folder} is on S3; give a folder of this machine")
    folder = folder.absolute()
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"out: {folder} is no folder; choose another one")
    if folder.exists() and next(folder.iterdir(), None) is not None:
        raise ValueError(f"out: {folder} is not empty; choose a new or empty folder")
    return folder
