"""Places of files: folders of this machine, or addresses ``s3://bucket/prefix``.

An address on S3 is a UPath of universal_pathlib, which has the interface of a Path. The rest of the code uses
the type Path for both. The differences between the two are handled in this file, in :mod:`storage.files`, in
:mod:`storage.lock` and in :mod:`storage.lock_slots`.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from storage.credentials import has_credential
from storage.errors import one_line

# A cached listing would hide files that other workers have written since. Ten attempts outlast the restart of
# a server, which takes a minute.
OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}},
}
ANSWER_SECONDS = 10.0  # time limit for a server's answer when a job starts

# Names with an empty part, with "." or "..", or with unusual characters; joining a path may change them.
_UNCLEAR = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[^\w./ -]")
# The error numbers that s3fs uses for SlowDown, ServiceUnavailable and InternalError.
_BUSY = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY)}


def place(where: str | Path) -> Path:
    """Return a path of this machine, or an address on S3.

    Credentials and endpoint of S3 come from the AWS_* environment variables.

    Raises
    ------
    ValueError
        If ``where`` is another kind of URL or names no bucket, or if the packages for S3 are not installed.
        The message is one line.
    """
    text = str(where)
    if has_credential(text):  # the address is not part of the message
        raise ValueError("the address holds a password or a token; leave it out and set the AWS_* variables")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+]+):/+", text)
    if scheme is None:
        return Path(where)
    if scheme[1] != "s3":
        raise ValueError(f"{text!r} is a URL; give a folder or s3://bucket/prefix")
    if not re.match(r"(?:arn:[\w:-]+|[\w.-]*)(?:/|$)", text[scheme.end() :]):
        raise ValueError("a bucket's name has letters, digits, dots and hyphens; give s3://bucket/prefix")
    key = text[scheme.end() :].rstrip("/")  # also after Path, which turns s3://bucket into s3:/bucket
    if not key:
        raise ValueError(f"{text!r} names no bucket; give s3://bucket/prefix")
    if re.search(r"[][*?]", key):
        raise ValueError(f"{text!r} has a bracket, * or ?, which an address on S3 must not have; rename it")
    if find_spec("s3fs") is None or find_spec("upath") is None:
        raise ValueError(f"{text!r} is on S3, which needs an extra: pip install 'floodlit[s3]'")
    from upath import UPath

    return cast(Path, UPath(f"s3://{key}", **OPTIONS))


def _given(value: object) -> Path:
    """Validate a value as a place; a path of pathlib or universal_pathlib is one already."""
    if not (isinstance(value, str) or hasattr(value, "joinpath")):
        raise ValueError("must be a path, as text")
    if not str(value):
        raise ValueError("is empty; give a path")
    if "\0" in str(value):
        raise ValueError("holds a NUL character, which no path has")
    return place(cast(Path, value))


Place = Annotated[
    Path,
    PlainValidator(_given),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "format": "path"}),
]


def is_remote(path: Path) -> bool:
    """Whether a path is an address on S3."""
    # UPath's class for S3 is not a subclass of pathlib.Path.
    return not isinstance(path, Path)


def is_there(path: Path) -> bool:
    """Whether a file exists.

    Raises
    ------
    ValueError
        If S3 cannot be reached; the message is one line.
    """
    if not is_remote(path):
        return path.exists()
    try:
        return path.exists()
    except Exception as error:
        if not (isinstance(error, OSError) or is_away(error)):
            raise
        raise ValueError(_unreached(path, error)) from error


def _unreached(path: Path, error: Exception) -> str:
    """Return the message that an address on S3 cannot be reached."""
    return f"{path} cannot be reached: {one_line(error)}; check AWS_ENDPOINT_URL and the credentials"


def check_answers(path: Path) -> None:
    """Check that the S3 server of an address answers; nothing is checked for a path of this machine.

    The time limits are shorter than those during a job, when a server that restarts is waited for.

    Raises
    ------
    OSError
        If no server answers; the message is one line.
    """
    if not is_remote(path):
        return
    remote = cast(Any, path)
    hasty = {
        "connect_timeout": ANSWER_SECONDS,
        "read_timeout": ANSWER_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 2},
    }
    fs = type(remote.fs)(**remote.storage_options | {"config_kwargs": hasty})
    fs.retries = 1  # s3fs retries on its own, in addition to botocore
    try:
        fs.call_s3("head_bucket", Bucket=remote.path.partition("/")[0])
    except Exception as error:
        if _is_silence(error) or isinstance(error, TimeoutError):
            raise OSError(_unreached(path, error)) from error
        if not isinstance(error, OSError):  # an OSError is an answer, e.g. a missing bucket: reported later
            raise


def is_away(error: Exception) -> bool:
    """Whether an error says that an S3 server is busy or cannot be reached.

    botocore's errors for an unreachable server are not OSErrors.
    """
    return (isinstance(error, OSError) and error.errno in _BUSY) or _is_silence(error)


def _is_silence(error: Exception) -> bool:
    """Whether an error says that an S3 server cannot be reached."""
    # Looked up and not imported: if nothing has imported botocore, nothing is on S3.
    botocore = sys.modules.get("botocore.exceptions")
    return botocore is not None and isinstance(error, botocore.BotoCoreError)


def for_arrow(path: Path) -> tuple[str, Any]:
    """Return a path and the file system with which Arrow has to read it; None stands for this machine's."""
    remote = cast(Any, path)
    return (remote.path, remote.fs) if is_remote(path) else (str(path), None)


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Read bytes from the middle of a file; fewer if the file ends before."""
    if is_remote(path):
        remote = cast(Any, path)
        return cast(bytes, remote.fs.cat_file(remote.path, start=offset, end=offset + size)) if size else b""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def addresses(root: Path, names: Iterable[str]) -> list[str]:
    """Return the paths of files below a folder as text, the same as ``str(root / name)``.

    Making an object of each of a million paths takes seconds, so it is done only for names that may change.
    """
    start = str(root / "x")[:-1]
    return [str(root / name) if _UNCLEAR.search(name) else start + name for name in names]


def folders_in(root: Path) -> list[str]:
    """Return the sorted names of the folders in a folder."""
    if not is_remote(root):
        return sorted(path.name for path in root.iterdir() if path.is_dir())
    found = cast(Any, root).fs.ls(cast(Any, root).path, detail=True)
    return sorted(about["name"].rpartition("/")[2] for about in found if about["type"] == "directory")


def files_under(root: Path) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path from there, sorted.

    On S3 this takes one listing, however many files there are.
    """
    if is_remote(root):
        remote = cast(Any, root)
        found = remote.fs.find(remote.path, detail=True)
        base = len(remote.path.rstrip("/")) + 1
        # Some servers keep an empty object for a folder.
        sizes = {name[base:]: int(at["size"]) for name, at in found.items() if name[base:].rstrip("/")}
    else:
        # One level first: rglob lists the files of a linked folder if it starts there, and skips links below.
        paths = [p for top in root.iterdir() for p in (top.rglob("*") if top.is_dir() else [top])]
        sizes = {p.relative_to(root).as_posix(): p.stat().st_size for p in paths if p.is_file()}
    # Sorted by the parts of the path, as pathlib sorts paths.
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: name.split("/"))}


def texts_of(root: Path, names: Sequence[str]) -> list[str]:
    """Read small text files in UTF-8 by their paths from a folder; on S3 many of them at once.

    Raises
    ------
    OSError, UnicodeDecodeError
        If one cannot be read.
    """
    if not is_remote(root):
        return [(root / name).read_text(encoding="utf-8-sig") for name in names]
    remote = cast(Any, root)
    keys = [f"{remote.path}/{name}" for name in names]
    found = remote.fs.cat(keys) if keys else {}  # by key, without the scheme
    return [found[key].decode("utf-8-sig") for key in keys]


def remove_tree(path: Path) -> None:
    """Remove a folder and everything in it; nothing happens if there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        cast(Any, path).fs.rm(cast(Any, path).path, recursive=True)
