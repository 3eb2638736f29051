"""Files that are whole or absent, and checksums of what they hold."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from storage.places import is_remote

PARTIAL = ".partial"  # the suffix Zarr's own local store uses for a file that is being written


class UnreadableError(ValueError):
    """What is read is damaged, or is not what it should be."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``: renamed over it when the block succeeds, removed when it fails.

    On S3, where nothing is renamed and an object appears whole, it is a file of this machine that is sent.
    """
    if is_remote(path):
        with TemporaryDirectory(prefix="floodlit-") as folder:
            yield Path(folder, path.name)
            cast(Any, path).fs.put_file(str(Path(folder, path.name)), cast(Any, path).path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def on_this_machine(path: Path) -> Iterator[Path]:
    """The same file for a library that reads no S3: a copy of it, where it is not of this machine."""
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
    """``shard-00012.parquet`` for shard 12 and suffix ``parquet``; sorts as the shards do."""
    return f"shard-{shard:05d}.{suffix}"


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of canonical JSON: sorted keys, no spaces, so that equal values have equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
