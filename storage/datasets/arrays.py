"""The arrays of ``.npz`` and ``.npy`` files, which are read only if the file is as large as it says."""

from __future__ import annotations

import math
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import LONGEST, one_line
from storage.files import memory_bytes
from storage.places import is_remote

DEFLATE = 1032  # no deflated byte becomes more bytes than these


def read_archive(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Read ``inputs`` and, if there are any, ``labels`` from an ``.npz`` file.

    Raises
    ------
    ValueError
        If the file cannot be read, or if an array is larger than the file or the memory of this machine can
        hold. The message is one line.
    """
    data = BytesIO(path.read_bytes())
    if not zipfile.is_zipfile(data):
        raise ValueError(f"{path} is not an .npz file; write one with numpy.savez(path, inputs=...)")
    try:
        with zipfile.ZipFile(data) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if "inputs" not in members:
                raise ValueError(f"has no array inputs; it has: {', '.join(members)}")
            found = {
                name: read_member(archive, members[name]) for name in ("inputs", "labels") if name in members
            }
    # The header of a damaged array is Python text, for which almost any error is raised.
    except Exception as error:
        raise ValueError(f"{path}: {one_line(error, LONGEST)}") from error
    return found["inputs"], found.get("labels")


def read_array_file(path: Path) -> NDArray[Any]:
    """Open the array of an ``.npy`` file; it is mapped and not read if it lies on this machine.

    Raises
    ------
    ValueError
        If the file cannot be read or is shorter than its array; the message is one line.
    """
    try:
        if is_remote(path):
            data = path.read_bytes()
            check_size(BytesIO(data), len(data))
            return np.lib.format.read_array(BytesIO(data))
        with path.open("rb") as file:
            check_size(file, path.stat().st_size)
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # see above
        raise ValueError(f"{path} is not an .npy file of numbers: {one_line(error, LONGEST)}") from error


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """Read an array of an archive."""
    if info.file_size > info.compress_size * DEFLATE:
        raise ValueError(
            f"{info.filename} claims {info.file_size} bytes, which {info.compress_size} cannot hold"
        )
    if info.file_size > (memory := memory_bytes()):
        raise ValueError(f"{info.filename} has {info.file_size} bytes, and this machine {memory} of memory")
    with archive.open(info) as file:
        check_size(file, info.file_size)
    with archive.open(info) as file:
        return np.lib.format.read_array(file)


def check_size(file: IO[bytes], size: int) -> None:
    """Raise ValueError if an array's header claims more than the ``size`` bytes of its file."""
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"has version {version} of the format, which is not for plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:  # NumPy refuses these
        return
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"its header claims {dtype} {shape}, which its {size} bytes cannot hold")
