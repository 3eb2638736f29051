"""Where files lie: in folders of this machine, or under ``s3://bucket/prefix``.

An address on S3 is a UPath of universal_pathlib, which has the interface of a Path; the rest of the code says
Path for both. What the two do not have in common is in this file, in :mod:`storage.files` and in
:mod:`storage.lock`.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

# A listing that was remembered would hide what other workers have written since; and a server that is started
# again, which takes a minute, is waited for.
OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}},
}
ANSWER_SECONDS = 10.0  # in which a server answers when a job starts

# What s3fs makes of SlowDown, ServiceUnavailable and InternalError.
_BUSY = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY)}


def place(where: str | Path) -> Path:
    """A path of this machine, or an address on S3. Credentials and endpoint come from AWS_* variables.

    Raises
    ------
    ValueError
        In one line, if it is another kind of URL, names no bucket, or S3 is not installed.
    """
    text = str(where)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+]+):/+", text)
    if scheme is None:
        return Path(where)
    if scheme[1] != "s3":
        raise ValueError(f"{text!r} is a URL; give a folder or s3://bucket/prefix")
    key = text[scheme.end() :].rstrip("/")  # also after Path, which turns s3://bucket into s3:/bucket
    if not key:
        raise ValueError(f"{text!r} names no bucket; give s3://bucket/prefix")
    if re.search(r"[][*?]", key):
        raise ValueError(f"{text!r} has a bracket, * or ?, which no address of ours may have; rename it")
    if find_spec("s3fs") is None or find_spec("upath") is None:
        raise ValueError(f"{text!r} is on S3, which needs an extra: pip install 'floodlit[s3]'")
    from upath import UPath

    return cast(Path, UPath(f"s3://{key}", **OPTIONS))


Place = Annotated[
    Path,
    PlainValidator(place),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "format": "path"}),
]


def is_remote(path: Path) -> bool:
    """Whether it is an address on S3."""
    return not isinstance(path, Path)


def is_there(path: Path) -> bool:
    """Whether there is a file.

    Raises
    ------
    ValueError
        In one line, if S3 cannot be asked.
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
    told = " ".join(str(error).split())
    return f"{path} cannot be reached: {told}; see to AWS_ENDPOINT_URL and the credentials"


def check_answers(path: Path) -> None:
    """Speak to the S3 server of an address, impatiently: it need not be starting again, as in mid-job.

    Raises
    ------
    OSError
        In one line, if none answers.
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
    fs.retries = 1  # its own, around those
    try:
        fs.call_s3("head_bucket", Bucket=remote.path.partition("/")[0])
    except Exception as error:
        if _is_silence(error) or isinstance(error, TimeoutError):
            raise OSError(_unreached(path, error)) from error
        if not isinstance(error, OSError):  # what it answers is for others to judge
            raise


def is_away(error: Exception) -> bool:
    """Whether it says that an S3 server is busy or cannot be spoken to, which is no OSError of botocore's."""
    return (isinstance(error, OSError) and error.errno in _BUSY) or _is_silence(error)


def _is_silence(error: Exception) -> bool:
    botocore = sys.modules.get("botocore.exceptions")  # without it nothing is on S3
    return botocore is not None and isinstance(error, botocore.BotoCoreError)


def for_arrow(path: Path) -> tuple[str, Any]:
    """A path and the file system that Arrow has to read it with, None for this machine's."""
    remote = cast(Any, path)
    return (remote.path, remote.fs) if is_remote(path) else (str(path), None)


def folders_in(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    if not is_remote(root):
        return sorted(path.name for path in root.iterdir() if path.is_dir())
    found = cast(Any, root).fs.ls(cast(Any, root).path, detail=True)
    return sorted(about["name"].rpartition("/")[2] for about in found if about["type"] == "directory")


def files_under(root: Path) -> dict[str, int]:
    """Bytes of every file below a folder by its path from there, sorted; one listing, however many."""
    if is_remote(root):
        remote = cast(Any, root)
        found = remote.fs.find(remote.path, detail=True)
        base = len(remote.path.rstrip("/")) + 1
        # Some servers keep an object of no size for a folder.
        sizes = {name[base:]: int(at["size"]) for name, at in found.items() if name[base:].rstrip("/")}
    else:
        # One level first: rglob lists what is in a folder that is a link, and passes links in it by.
        paths = [p for top in root.iterdir() for p in (top.rglob("*") if top.is_dir() else [top])]
        sizes = {p.relative_to(root).as_posix(): p.stat().st_size for p in paths if p.is_file()}
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: name.split("/"))}


def remove_tree(path: Path) -> None:
    """Remove a folder and everything in it; nothing happens if there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        cast(Any, path).fs.rm(cast(Any, path).path, recursive=True)
