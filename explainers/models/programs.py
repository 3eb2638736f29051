"""Networks that were saved together with their code: TorchScript modules, and programs of torch.export.

A program is code. It runs when the network is called, and parts of it may run when the file is read, so it
has to be trusted as a Python file has to be.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, jit, nn

from explainers.models.checkpoint_files import check_program
from explainers.models.model_spec import PROGRAMS, ModelSpec, Program
from plugins.reasons import first_line

_MANGLED = re.compile(r"\.?___torch_mangle_\d+")  # numbers that say how many classes were scripted before
_DYNAMIC = "torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"


class SavedProgram(nn.Module):
    """A network that was read from a file with its code. The file's SHA-256 is part of the state dict."""

    def __init__(self, program: nn.Module, digest: bytes) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("file_digest", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Any:
        """What the program returns for normalised inputs (B, C, \\*sites)."""
        return self.program(inputs)


_PROGRAM = (SavedProgram, jit.ScriptModule)


def torchscript_network(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    """The TorchScript module in the job's file, as ``torch.jit.save`` writes it.

    Raises
    ------
    ValueError
        In one line that begins with the key: there is no such file, or it is of another kind or damaged.
    """
    return _saved(spec, "torchscript", lambda path: jit.load(path, map_location=device))


def exported_network(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    """The program in the job's file, as ``torch.export.save`` writes it.

    Raises
    ------
    ValueError
        In one line that begins with the key: there is no such file, it is of another kind or damaged, or the
        program takes several inputs or a fixed number of them.
    """
    from torch.export.passes import move_to_device_pass

    def read(path: Path) -> nn.Module:
        program = torch.export.load(path)
        _check_inputs(path, program)
        moved: nn.Module = move_to_device_pass(program, str(device)).module()
        return moved

    return _saved(spec, "exported", read)


def _saved(spec: ModelSpec, kind: Program, read: Callable[[Path], nn.Module]) -> SavedProgram:
    for key in ("name", "weights_key"):
        if getattr(spec, key) is not None:
            raise ValueError(f"model.{key}: a program is read as it is; leave the key out")
    if spec.weights in (None, "none"):
        raise ValueError(f"model.weights: give the file of the {PROGRAMS[kind]}")
    path = Path(str(spec.weights))
    check_program(path, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises against TorchScript, which the user has chosen
            program = read(path)
    except _CannotRunError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # the code of the file may raise anything
        raise ValueError(
            f"model.weights: cannot read {path}: {first_line(error)}; save the {PROGRAMS[kind]} again with "
            f"torch {torch.__version__.partition('+')[0]}"
        ) from error
    with path.open("rb") as file:
        return SavedProgram(program, hashlib.file_digest(file, "sha256").digest())


class _CannotRunError(Exception):
    """A program does not run on batches of images; the message is one line with the key."""


def _check_inputs(path: Path, program: Any) -> None:
    """Refuse a program that takes several tensors, or a fixed number of inputs at a time."""
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise _CannotRunError(f"model.weights: the program in {path} takes {len(names)} inputs, not one")
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == names[0])
    if not shape or isinstance(shape[0], int):
        raise _CannotRunError(
            f"model.weights: the program in {path} takes inputs of shape {tuple(shape)} alone; export it for "
            f"any number of them: {_DYNAMIC}"
        )


def check_can_be_cut(network: nn.Module) -> None:
    """Check that a network is no program.

    Raises
    ------
    ValueError
        In one line that begins with ``model.layer``.
    """
    if isinstance(network, _PROGRAM):
        raise ValueError(
            "model.layer: the network is a program (TorchScript or torch.export), which cannot be cut at a "
            "layer; choose explainers that need no layer, such as rise or occlusion, or give the nn.Module "
            "that it was made from as a callable"
        )


def check_can_be_lowered(network: nn.Module) -> None:
    """Check that a network may compute in lower precision: a program is one piece, and so are its logits.

    Raises
    ------
    ValueError
        In one line that begins with ``compute.precision``.
    """
    if isinstance(network, _PROGRAM):
        raise ValueError(
            "compute.precision: the network is a program (TorchScript or torch.export), whose last layer "
            "cannot stay in float32, so that its logits would be rounded; leave the key out"
        )


def code_of_scripts(network: nn.Module) -> Iterator[bytes]:
    """The code of every TorchScript module that a network is or holds, with the constants in it.

    Two modules with the same weights may compute different things, which their state dicts do not say.
    """
    inner: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, jit.ScriptModule) and module not in inner:
            inner.update(module.modules())
            graph: Any = module.inlined_graph
            yield _MANGLED.sub("", graph.str(False)).encode()  # without the places of the code in files
            for node in graph.findAllNodes("prim::Constant", True):
                if node.hasAttribute("value") and node.kindOf("value") == "t":
                    constant = node.t("value").detach().cpu().contiguous()
                    yield constant.reshape(-1).view(torch.uint8).numpy().tobytes()
