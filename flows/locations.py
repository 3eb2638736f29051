"""Paths in a job: where they start, and which of them can be the place of the results."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationInfo

from explainers.models.model_spec import ModelSpec
from storage.datasets.spec import DatasetSpec
from storage.places import is_remote

_LONGEST_NAME = 255  # bytes of a file's name, on all common file systems
_LONGEST_PATH = 3900  # bytes; Linux takes 4,095, and the files of a run lie below its folder


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder at which relative paths start: that of the job file, or the working directory."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder


def anchored(path: Path, info: ValidationInfo) -> Path:
    """Return a path as an absolute one; an address on S3 stays as it is.

    Raises
    ------
    ValueError
        If the path is too long, or begins with the home folder of a user who is not known.
    """
    if is_remote(path):
        return path
    try:
        # Unlike Path.resolve, normpath keeps symbolic links.
        found = Path(os.path.normpath(folder_of(info) / path.expanduser()))
    except RuntimeError as error:
        raise ValueError(
            f"{path.parts[0]} is the home folder of no known user; write the whole path"
        ) from error
    if max((len(os.fsencode(part)) for part in found.parts), default=0) > _LONGEST_NAME:
        raise ValueError(f"a name in the path has more than {_LONGEST_NAME} bytes; shorten it")
    if len(os.fsencode(found)) > _LONGEST_PATH:
        raise ValueError(f"the path has more than {_LONGEST_PATH} bytes; shorten it")
    return found


def located_dataset(dataset: DatasetSpec, info: ValidationInfo) -> DatasetSpec:
    """Return a job's table ``[dataset]`` with absolute paths."""
    return dataset.with_paths(lambda path: anchored(path, info))


def located_model(model: ModelSpec, info: ValidationInfo) -> ModelSpec:
    """Return a job's table ``[model]`` with absolute paths.

    Raises
    ------
    ValueError
        If a path is too long.
    """
    try:
        return model.relative_to(folder_of(info))
    except OSError as error:  # a name that is too long for a file
        raise ValueError(f"{error.strerror}; shorten the name or the path") from error


def refuse_store(store: Path) -> None:
    """Check that a folder can be that of a run: it need not exist, but it must be possible to make it.

    A link to a folder is a folder.

    Raises
    ------
    ValueError
        In one line that says what to choose instead.
    """
    if is_remote(store):
        return
    instead = "choose a new folder, e.g. runs/NAME"
    if store == Path(store.anchor):
        raise ValueError(f"{store} is the root of all files; {instead}")
    try:
        if os.path.realpath(store) == os.path.realpath(Path.home()):
            raise ValueError(f"{store} is your home folder; {instead}")
    except RuntimeError:  # a user without a home folder
        pass
    try:
        there = next(path for path in (store, *store.parents) if os.path.lexists(path))
        if not there.is_dir():
            what = (
                "a link that leads nowhere" if there.is_symlink() and not there.exists() else "not a folder"
            )
            raise ValueError(f"{there} is {what}; {instead}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"{there} cannot be written to; change its permissions, or {instead}")
    except OSError as error:
        raise ValueError(f"{store} cannot be used: {error.strerror}; {instead}") from error


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or lies below it."""
    if is_remote(path) or is_remote(folder):
        return f"{path}/".startswith(f"{str(folder).rstrip('/')}/")
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
