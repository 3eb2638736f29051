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

from explainers.models.model_spec import PROGRAMS, Program
from explainers.models.regular import check_file
from plugins.reasons import first_line

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


def read_file(path: Path, key: str = "model.weights") -> Any:
    """What a safetensors file or a torch file holds, with its tensors on the CPU; no code of it is run.

    Raises
    ------
    ValueError
        In one line that begins with ``key`` and says what to do, if it is no such file.
    """
    check_file(key, path)
    try:
        kind = _kind(path)
        if kind in PROGRAMS:
            raise _CannotReadError(
                f"it is a {PROGRAMS[kind]}, which is a network with its weights; set source = "
                f'"{kind}", or save its state_dict() with torch.save'
            )
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
        raise ValueError(f"{key}: cannot read {path}: {error}") from error
    except Exception as error:
        raise ValueError(f"{key}: cannot read {path}: {_reason(error)}") from error


class _CannotReadError(Exception):
    """The file is no file of weights; the message says what it is."""


def check_program(path: Path, kind: Program) -> None:
    """Check that a file holds a program of a kind.

    Raises
    ------
    ValueError
        In one line that begins with ``model.weights``: there is no such file, or it is of another kind.
    """
    check_file("model.weights", path)
    try:
        found = _kind(path)
    except _CannotReadError as error:
        raise ValueError(f"model.weights: cannot read {path}: {error}") from error
    if found in PROGRAMS and found != kind:
        raise ValueError(f'model.source: {path} is a {PROGRAMS[found]}; set source = "{found}"')
    if found != kind:
        raise ValueError(
            f"model.weights: {path} is a {found} file, and no {PROGRAMS[kind]}; give the source of the "
            "network that it holds the weights of"
        )


def _kind(path: Path) -> str:
    """Return "safetensors", "torch", or the kind of program, by what the file holds."""
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
        return _kind_of_zip(path)
    if begin[:1] == b"\x80":  # a pickle, as torch wrote until 2020
        return "torch"
    if begin[8:9] == b"{":
        length = int.from_bytes(begin[:8], "little")
        if 8 + length > path.stat().st_size:
            raise _CannotReadError("its end is missing; copy or download it again")
        return "safetensors"
    raise _CannotReadError("it is neither a safetensors file nor a torch file")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            begin = min((member.header_offset for member in archive.infolist()), default=0)
    except zipfile.BadZipFile as error:
        raise _CannotReadError("its end is missing; copy or download it again") from error
    if begin > 0:  # the list of members that was found is that of a file inside this one
        raise _CannotReadError("its end is missing; copy or download it again")
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        return "torchscript"
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return "exported"
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    raise _CannotReadError(f"it is a zip file that holds {names[0] if names else 'nothing'}, and no weights")


def _reason(error: Exception) -> str:
    """Why torch or safetensors could not read a file, and what to do."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds objects of the class {named[1]}, and reading them could run code; {_ONLY_STATE}"
    if isinstance(error, pickle.UnpicklingError):
        return f"it is damaged, or torch.save did not write it; {_ONLY_STATE}"
    if isinstance(error, OSError):
        return first_line(error)
    return f"it is damaged ({first_line(error)}); copy or download it again"
