"""Checkpoints: the weights of a small network, wrapped, renamed, cast, doubled or damaged.

The second check computes the logits with the weights that went into the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from attempts import attempt, hostile
from explainers.models.loading import ModelSpec, load
from storage.errors import FloodlitError

NET = """
import torch
from torch import nn


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )
"""
WRAPPINGS: list[tuple[str, ...]] = [
    (),
    ("state_dict",),
    ("model",),
    ("model_state_dict",),
    ("net",),
    ("checkpoint", "state_dict"),
    ("somewhere", "unheard", "of"),
]
SECOND = (None, "state_dict_ema", "model_ema", "ema", "optimizer")
PREFIXES = ("", "module.", "_orig_mod.", "model.", "module._orig_mod.", "module.model.net.", "unheard.of.")
CASTS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-6, torch.float16: 1e-2, torch.bfloat16: 0.1}  # of the logits
DAMAGES = (
    *("none",) * 16,
    *("truncated", "text", "empty", "missing tensor", "extra tensor", "other shape"),
    *(
        "not finite",
        "whole numbers",
        "integer names",
        "no tensor",
        "whole module",
        "scripted",
        "pipe",
        "zeros",
        "folder",
    ),
)


@dataclass(frozen=True)
class Draft:
    wrapping: tuple[str, ...]
    second: str | None
    prefix: str
    cast: torch.dtype
    damage: str
    counter: bool  # AveragedModel's n_averaged
    suffix: str


drafts = st.builds(
    Draft,
    st.sampled_from(WRAPPINGS),
    st.sampled_from(SECOND),
    st.sampled_from(PREFIXES),
    st.sampled_from(CASTS),
    st.sampled_from(DAMAGES),
    st.booleans(),
    st.sampled_from([".pt", ".pth", ".ckpt", ".safetensors"]),
)


def network(folder: Path) -> nn.Module:
    space: dict[str, Any] = {}
    exec(NET, space)
    (folder / "net.py").write_text(NET)
    made: nn.Module = space["net"]()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in made.parameters():  # not those that the network is built with
            value.copy_(torch.randn(value.shape, generator=generator))
    return made.eval()


def write(draft: Draft, made: nn.Module, path: Path) -> None:
    state: dict[Any, Any] = {
        f"{draft.prefix}{name}": value.to(draft.cast) if value.is_floating_point() else value
        for name, value in made.state_dict().items()
    }
    if draft.counter:
        state["n_averaged"] = torch.tensor(3)
    first = next(iter(state))
    if draft.damage == "missing tensor":
        del state[first]
    elif draft.damage == "extra tensor":
        state[f"{draft.prefix}head.weight"] = torch.ones(2)
    elif draft.damage == "other shape":
        state[first] = torch.ones(4, 3, 5, 5)
    elif draft.damage == "not finite":
        state[first] = state[first] * torch.nan
    elif draft.damage == "whole numbers":
        state[first] = torch.ones(4, 3, 3, 3, dtype=torch.int8)
    elif draft.damage == "integer names":
        state = dict(enumerate(state.values()))
    elif draft.damage == "no tensor":
        state[first] = "weights"
    if draft.suffix == ".safetensors" and draft.damage not in {"integer names", "no tensor"}:
        save_file(state, path)
    else:
        torch.save(wrapped(draft, state), path)


def wrapped(draft: Draft, state: dict[Any, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = state
    for key in reversed(draft.wrapping):
        inner = {key: inner, "epoch": 3}
    if draft.second == "optimizer" and draft.wrapping:
        inner["optimizer"] = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    elif draft.second and draft.wrapping:
        inner[draft.second] = {k: v + 1 if torch.is_tensor(v) else v for k, v in state.items()}
    return inner


def damaged(draft: Draft, made: nn.Module, path: Path) -> None:
    match draft.damage:
        case "truncated":
            write(draft, made, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "text":
            path.write_text("<html>404</html>")
        case "empty":
            path.write_bytes(b"")
        case "whole module":
            torch.save(made, path)
        case "scripted":
            torch.jit.trace(made, torch.zeros(1, 3, 8, 8)).save(str(path))
        case "pipe":
            os.mkfifo(path)
        case "zeros":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case _:
            write(draft, made, path)


def meaningless(draft: Draft) -> str | None:
    """Why a file has no weights of which nobody could doubt; None if it has."""
    if draft.damage not in {"none", "whole module", "scripted"}:
        return draft.damage
    plain = draft.suffix == ".safetensors"
    two = draft.second not in {None, "optimizer"} and draft.wrapping and not plain
    return "two sets of weights" if two and draft.damage == "none" else None


def logits(folder: Path, path: Path, images: Tensor) -> Tensor:
    spec = ModelSpec(source=f"{folder}/net.py:net", weights=str(path), layer="2")
    try:
        with load(spec, input_size=(8, 8)) as classifier:
            return classifier.logits(images).detach()
    except ValueError as error:  # the flow makes it a refusal of the job
        if not str(error).startswith("model."):
            raise
        raise FloodlitError(str(error)) from error


@hostile
@given(draft=drafts)
def test_the_logits_are_those_of_the_weights_in_the_file(place: Path, draft: Draft) -> None:
    folder = Path(mkdtemp(dir=place))
    made = network(folder)
    path = folder / f"weights{draft.suffix}"
    damaged(draft, made, path)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    answer = attempt("checkpoints", lambda: logits(folder, path, images))
    why = meaningless(draft)
    if answer.accepted:
        assert why is None, f"accepted: {why}"
        with torch.no_grad():
            expected = made(images)
        torch.testing.assert_close(
            answer.value, expected, rtol=0, atol=CLOSE[draft.cast] * float(expected.abs().max())
        )
    elif draft.wrapping in {(), ("state_dict",), ("model",)} and draft.prefix in {"", "module."}:
        assert why is not None or draft.damage != "none", f"refused plain weights: {answer.refusal}"
