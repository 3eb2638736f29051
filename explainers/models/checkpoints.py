"""Load weights from files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explainers.models.reasons import first_line


def load_weights(network: nn.Module, path: Path, training_only: tuple[str, ...] = ()) -> None:
    """Load the state dict in a file into a network.

    A state dict under the key ``state_dict`` or ``model`` is unwrapped, and the prefix ``module.`` of its
    names, which data-parallel training adds, is removed.

    Parameters
    ----------
    network
        The network whose parameters and buffers are replaced.
    path
        A safetensors file, or a torch file, which is read with ``weights_only``.
    training_only
        Beginnings of names of tensors that only training needs, and that the network does without.

    Raises
    ------
    ValueError
        In one line, if there is no such file, if it holds no state dict, or if that does not fit the network.
    """
    state = {name: value for name, value in _read(path).items() if not name.startswith(training_only)}
    expected = network.state_dict()
    try:
        network.load_state_dict({_current_name(name, expected): value for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(
            f"model.weights: {path} does not fit the network: {_misfit(state, expected)}"
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file, unwrapped."""
    if not path.is_file():
        raise ValueError(f"model.weights: there is no file {path}")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"model.weights: cannot read {path}: {first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"model.weights: {path} holds no state dict (a mapping of names to tensors)")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _current_name(name: str, expected: Mapping[str, Tensor]) -> str:
    """The name that the network has for a tensor of a file."""
    # torchvision's published DenseNet files say norm.1 where the network says norm1.
    renamed = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name)
    return renamed if name not in expected and renamed in expected else name


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first difference between two state dicts, and its likely cause."""
    for name, value in expected.items():
        if name in state and state[name].shape != value.shape:
            found, wanted = tuple(state[name].shape), tuple(value.shape)
            classes = found[1:] == wanted[1:]
            advice = f"; if it has {found[0]} classes, set model.num_classes" if classes else ""
            return f"{name} is {found} in the file and {wanted} in the network{advice}"
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    parts = [
        f"{len(names)} {what}, such as {names[0]}"
        for names, what in ((missing, "tensors are missing"), (extra, "tensors are unknown to the network"))
        if names
    ]
    return "; ".join(parts) + "; check model.name"
