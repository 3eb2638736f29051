"""Tar files: one pass over the headers says where each member lies, so that it can be read by itself."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from storage.errors import LONGEST, one_line
from storage.files import MOST_JSON_BYTES

_BLOCK = 512  # bytes of a header
_PADDING = 1 << 20  # bytes behind the end mark that are looked at; tar fills up to 10 KiB by default
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
}


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes are, and when it was changed, in seconds since 1970.

    ``data`` are the bytes of a member that is read in the pass, else empty.
    """

    name: str
    offset: int
    size: int
    changed: int
    data: bytes = b""


def members(path: Path, read: Callable[[str], bool], links: list[str]) -> Iterator[Member]:
    """Yield the files in a tar; folders are left out.

    Parameters
    ----------
    read
        Function that says by the name of a member whether its bytes are read, too.
    links
        A list to which the names of links, devices and sparse files are appended, which are left out too.

    Raises
    ------
    ValueError
        If the file is no whole tar, or is compressed. The message is one line that begins with the key.
    """
    try:
        with path.open("rb") as file:
            _refuse_compressed(path, file)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                size = file.seek(0, 2)
                while (info := tar.next()) is not None:
                    # tarfile would keep each, which is a kilobyte of memory.
                    tar.members = []  # type: ignore[attr-defined]
                    if info.offset_data + info.size > size:
                        raise _cut(path, info.name)
                    if info.isreg() and not info.issparse():
                        data = _data(path, file, info) if read(info.name) else b""
                        name = info.name.removeprefix("./")
                        yield Member(name, info.offset_data, info.size, int(info.mtime), data)
                    elif not info.isdir():
                        links.append(info.name)
                _check_end(path, file, tar.offset)
    except tarfile.TarError as error:
        if "unexpected end" in str(error):
            raise _cut(path) from error
        raise ValueError(f"dataset.path: {path} is not a tar file: {one_line(error, LONGEST)}") from error
    except OSError as error:
        raise ValueError(f"dataset.path: {path} cannot be read: {one_line(error, LONGEST)}") from error


def _data(path: Path, file: IO[bytes], info: tarfile.TarInfo) -> bytes:
    if info.size > MOST_JSON_BYTES:
        raise ValueError(
            f"dataset.path: {info.name} in {path} has {info.size} bytes; at most {MOST_JSON_BYTES} are read"
        )
    file.seek(info.offset_data)
    return file.read(info.size)


def _refuse_compressed(path: Path, file: IO[bytes]) -> None:
    begin = file.read(8)
    file.seek(0)
    for magic, tool in _COMPRESSED.items():
        if begin.startswith(magic):
            raise ValueError(
                f"dataset.path: {path} is compressed, so that its members cannot be read one by one; unpack "
                f"it to a plain tar, e.g. with {tool}"
            )


def _check_end(path: Path, file: IO[bytes], offset: int) -> None:
    """Check that a tar ends where its members end, which tarfile does not."""
    file.seek(offset)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise _cut(path)
    if any(mark):
        raise ValueError(f"dataset.path: {path} is damaged: at byte {offset} there is no header of a member")
    if any(file.read(_PADDING)):
        raise ValueError(
            f"dataset.path: {path} goes on behind its end mark, as tars that were joined with cat do; join "
            "them with tar --concatenate, or name them one by one"
        )


def _cut(path: Path, name: str = "") -> ValueError:
    within = f" within {name}" if name else ""
    return ValueError(
        f"dataset.path: {path} ends{within} without an end mark: it was cut off, or is being written"
    )
