"""The files of a dataset that lies in several: one file, a folder, a glob, or a pattern with braces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path, PurePath

from storage.datasets.formats import is_hidden
from storage.files import UnreadableError, regular
from storage.places import files_under, is_remote, is_there, place

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
MOST = 1_000_000  # files of one dataset


def shard_files(path: Path, suffix: str) -> list[Path]:
    """Find the files of a dataset.

    Parameters
    ----------
    path
        A file, a folder, below which every file with the suffix counts, a glob such as ``part-*.parquet``, or
        a pattern such as ``shard-{000000..000009}.tar`` or ``{train,val}.tar``, whose files must all exist.
        A file that is called like a pattern is that file.

    Returns
    -------
    list[Path]
        The files in the order of the pattern, and those of folders and globs sorted by name.

    Raises
    ------
    ValueError
        If there is none, or one of a pattern is missing; the message is one line.
    """
    try:
        if is_there(path) and not path.is_dir():
            return [regular(path)]
        if path.is_dir():
            names = [name for name in files_under(path) if _counts(PurePath(name), suffix)]
            return _some([path / name for name in names], f"file *{suffix} below {path}")
        if not is_remote(path) and re.search(r"[][*?]", str(path)):
            found = [file for each in expanded(str(path)) for file in sorted(_matching(Path(each)))]
            return _some([regular(each) for each in found if not each.is_dir()], f"file {path}")
        files = [place(each) for each in expanded(str(path))]
        lacking = next((each for each in files if not is_there(regular(each))), None)
    except UnreadableError as error:
        raise ValueError(f"dataset.path: {error}") from error
    except OSError as error:
        raise ValueError(f"dataset.path: {path} cannot be looked at: {error.strerror}") from error
    if lacking is not None:
        raise ValueError(f"dataset.path: there is no file {lacking}")
    return files


class Unchanged:
    """Notices that files of this machine were written again after they were listed.

    Files on S3 are not looked at, since that would take a request for each image.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._known = {file: _state(file) for file in files if not is_remote(file)}

    def check(self, file: Path) -> None:
        """Raise UnreadableError if a file is not the one that was listed; the message is one line."""
        if self._known.get(file) not in {None, _state(file)}:
            raise UnreadableError(f"{file.name} changed after the job was planned")


def _state(file: Path) -> tuple[int, int]:
    """The size and the time of a file; both are -1 if it is not there."""
    try:
        about = file.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def _matching(pattern: Path) -> Iterator[Path]:
    return Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))


def _some(files: list[Path], what: str) -> list[Path]:
    if not files:
        raise ValueError(f"dataset.path: there is no {what}")
    return files


def _counts(path: PurePath, suffix: str) -> bool:
    return path.suffix.lower() == suffix and not is_hidden(path)


def expanded(pattern: str) -> list[str]:
    """Return the texts for which a pattern with braces stands: ``{08..11}`` counts, and ``{a,b}`` lists.

    Raises
    ------
    ValueError
        If it stands for none, or for more than a million; the message is one line.
    """
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if at % 2 else [part] for at, part in enumerate(parts)]
    count = 1
    for each in choices:
        count *= len(each)
    if not 1 <= count <= MOST:
        raise ValueError(f"dataset.path: {pattern} stands for {count:,} files; it may be 1 to {MOST:,}")
    return ["".join(each) for each in product(*choices)]


def _choices(inner: str) -> list[str]:
    found = _RANGE.fullmatch(inner)
    if found is None:
        return inner.split(",") if "," in inner else [f"{{{inner}}}"]
    first, last = found[1], found[2]
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    count = int(last) - int(first) + 1
    if count > MOST:
        raise ValueError(f"dataset.path: {{{inner[:60]}}} stands for {count:,} files; it may be {MOST:,}")
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
