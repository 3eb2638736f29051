"""Files that are whole or absent, and checksums of files and values."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from storage.errors import LONGEST, FloodlitError, one_line
from storage.places import files_under, is_remote

FILE, FOLDER, LINK = "a file", "a folder", "a link"  # kinds of paths in words
_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFLNK: LINK,
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
PARTIAL = ".partial"  # Zarr's local store uses the same suffix for a file that is being written
MOST_JSON_BYTES = 64 << 20  # of a JSON file that is read; run.json with 20,000 class names has 1 MB
_MODE = 0o664  # of a new JSON file, which nobody but its owner and group may change, whatever the umask is


class UnreadableError(FloodlitError, ValueError):
    """An item cannot be read, because it is damaged or of an unexpected kind."""


def regular(path: Path) -> Path:
    """Return ``path`` if it is a regular file or does not exist; links are followed.

    Call it before opening a file that is named by data. A pipe, a device or a socket is not opened, because
    reading it may never end.

    Raises
    ------
    UnreadableError
        If the path leads to something else than a file.
    """
    if is_remote(path):  # S3 holds nothing else than objects
        return path
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnreadableError(f"{path} is a link to itself, not a file") from error
        raise
    if not stat.S_ISREG(mode):
        raise UnreadableError(f"{path} is {kind_of(mode)}, not a file")
    return path


def kind_of(mode: int) -> str:
    """Return the kind of a path in words, with the article, from its mode as ``stat`` gives it."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def memory_bytes() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_json(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """Read a JSON file that may hold anything.

    Parameters
    ----------
    most
        Largest number of bytes that is read.

    Raises
    ------
    UnreadableError
        If the path leads to something else than a file, or the file is too large or not JSON. The message
        is one line.
    FileNotFoundError
        If there is no such file.
    """
    if is_remote(path):  # opening an object costs a request more than reading it whole
        return parse_json(path.read_bytes(), str(path), most)
    with regular(path).open("rb") as file:
        return parse_json(file.read(most + 1), str(path), most)


def parse_json(text: bytes, name: str, most: int = MOST_JSON_BYTES) -> Any:
    """Return the value of JSON text that may hold anything.

    Parameters
    ----------
    name
        The file, for the message.

    Raises
    ------
    UnreadableError
        If the text has more than ``most`` bytes or is not JSON.
    """
    if len(text) > most:
        raise UnreadableError(f"{name} has more than {most:,} bytes")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UnreadableError(f"{name} is nested too deeply") from error
    except ValueError as error:  # also text that is not UTF-8, and numbers with thousands of digits
        raise UnreadableError(f"{name} is not JSON: {one_line(error, LONGEST)}") from error


def make_room(path: Path) -> None:
    """Remove what lies at the path of a file of the run; nothing happens if nothing does.

    Raises
    ------
    UnreadableError
        If it is a folder that is not empty, because what somebody put there is not deleted.
    """
    if is_remote(path) or path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        path.rmdir()
    except OSError as error:
        raise UnreadableError(
            f"{path} is a folder that is not empty, but the run needs a file there; move the folder away"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, to be written in the block.

    The file is renamed to ``path`` if the block succeeds, and removed if it fails. On S3 there is no rename,
    but an object appears whole. There the temporary file lies on this machine and is sent at the end.
    """
    if is_remote(path):
        with TemporaryDirectory(prefix="floodlit-") as folder:
            yield Path(folder, path.name)
            cast(Any, path).fs.put_file(str(Path(folder, path.name)), cast(Any, path).path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random part in the name, because two processes may write the same file at the same time.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:  # also at Ctrl-C
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def on_this_machine(path: Path) -> Iterator[Path]:
    """Yield the path of a file for a library that cannot read from S3; an object is copied to this machine.

    If there is no such object, the path leads to no file either.
    """
    if not is_remote(path):
        yield path
        return
    with TemporaryDirectory(prefix="floodlit-") as folder:
        copy = Path(folder, path.name)
        if path.exists():
            copy.write_bytes(path.read_bytes())
        yield copy


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file of the run in one step, in the place of what lies there; return its path."""
    make_room(path)
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as partial:
        partial.touch(_MODE)
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def shard_name(shard: int, suffix: str) -> str:
    """Return a shard's file name, e.g. ``shard-00012.parquet``; names sort in the order of the shards."""
    return f"shard-{shard:05d}.{suffix}"


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files below a folder."""
    if not path.is_dir():
        return sha256_of_file(path)
    return sha256_of_json({name: sha256_of_file(path / name) for name in files_under(path)})


def sha256_of_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value as canonical JSON.

    The JSON has sorted keys and no spaces, so that equal values have equal hashes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
