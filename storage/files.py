"""Files that are whole or absent, and checksums of files and values."""

from __future__ import annotations

import hashlib
import json
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from storage.errors import FloodlitError
from storage.places import is_remote

PARTIAL = ".partial"  # Zarr's local store uses the same suffix for a file that is being written


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
    if not stat.S_ISREG(mode):
        raise UnreadableError(f"{path} is {_kind(mode)}, not a file")
    return path


def _kind(mode: int) -> str:
    """Return the kind of a path that is no file, with its article."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


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


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def shard_name(shard: int, suffix: str) -> str:
    """Return a shard's file name, e.g. ``shard-00012.parquet``; names sort in the order of the shards."""
    return f"shard-{shard:05d}.{suffix}"


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value as canonical JSON.

    The JSON has sorted keys and no spaces, so that equal values have equal hashes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
