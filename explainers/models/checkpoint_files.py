"""Read a file of weights, or say what it is instead."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from explainers.models.reasons import first_line
from explainers.models.regular import check_file

# How files begin that are often taken for weights.
_OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"\x89HDF": "it is an HDF5 file, which another library wrote; convert it to safetensors",
    b"\x93NUMPY": "it is a NumPy array; save the network's state dict with torch.save",
    b"<": "it is a web page, so that the download went wrong; download it again",
}
_ONLY_STATE = "save network.state_dict() alone, where the file was made"
_scalar = np.float64(0).__reduce__()[0]  # what NumPy's numbers are pickled with, in old and new versions
# Harmless classes that training scripts put beside the weights: settings, and numbers of NumPy.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((_scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool")),
]


def read_file(path: Path) -> Any:
    """What a safetensors file or a torch file holds, with its tensors on the CPU; no code of it is run.

    Raises
    ------
    ValueError
        In one line that begins with ``model.weights`` and says what to do, if it is no such file.
    """
    check_file("model.weights", path)
    try:
        kind = _kind(path)
        if (kind == "safetensors") != (path.suffix == ".safetensors"):
            suffix = ".safetensors" if kind == "safetensors" else ".pth"
            raise _CannotReadError(f"it is a {kind} file; rename it so that it ends in {suffix}")
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old and of rare files that it reads all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except _CannotReadError as error:
        raise ValueError(f"model.weights: cannot read {path}: {error}") from error
    except Exception as error:
        raise ValueError(f"model.weights: cannot read {path}: {_reason(error)}") from error


class _CannotReadError(Exception):
    """The file is no file of weights; the message says what it is."""


def _kind(path: Path) -> str:
    """Return "safetensors" or "torch", by what the file holds."""
    with path.open("rb") as file:
        begin = file.read(512)
    if not begin:
        raise _CannotReadError("it is empty; copy or download it again")
    for magic, reason in _OTHERS.items():
        if begin.startswith(magic):
            raise _CannotReadError(reason)
    if begin[257:262] == b"ustar":
        raise _CannotReadError("it is a tar archive; unpack it, and give a file in it")
    if begin.startswith(b"PK"):
        _check_zip(path)
        return "torch"
    if begin[:1] == b"\x80":  # a pickle, as torch wrote until 2020
        return "torch"
    if begin[8:9] == b"{":
        length = int.from_bytes(begin[:8], "little")
        if 8 + length > path.stat().st_size:
            raise _CannotReadError("its end is missing; copy or download it again")
        return "safetensors"
    raise _CannotReadError("it is neither a safetensors file nor a torch file")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _CannotReadError("its end is missing; copy or download it again") from error
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise _CannotReadError(
            "it is a TorchScript module; save torch.jit.load(FILE).state_dict() with torch.save instead"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise _CannotReadError(
            f"it is a zip file that holds {names[0] if names else 'nothing'}, and no weights"
        )


def _reason(error: Exception) -> str:
    """Why torch or safetensors could not read a file, and what to do."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds objects of the class {named[1]}, and reading them could run code; {_ONLY_STATE}"
    if isinstance(error, pickle.UnpicklingError):
        return f"it is damaged, or torch.save did not write it; {_ONLY_STATE}"
    if isinstance(error, OSError):
        return first_line(error)
    return f"it is damaged ({first_line(error)}); copy or download it again"
