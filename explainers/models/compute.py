"""How forward passes of a classifier are computed: in which precision, and compiled or not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from explainers.models.reasons import one_line

_LOG = logging.getLogger(__name__)


class Compute(BaseModel):
    """The ``[compute]`` table of a job.

    It holds for the classifier's forward passes that nobody differentiates. Passes that gradients are taken
    through run in float32, because gradients underflow in float16 and cancel badly in bfloat16; those through
    the whole network in TF32 where that is asked for. The layer that gives the logits, softmax, maps and
    decompositions stay in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the network's forward passes; products are summed in float32"
    )
    tf32: bool = Field(False, description="float32 products of forward passes in TF32, on GPUs that have it")
    compile: bool = Field(
        False, description="the network through torch.compile; as it is where that fails, with a warning"
    )


_full: ContextVar[bool] = ContextVar("full", default=False)
_eager: ContextVar[bool] = ContextVar("eager", default=False)


@contextmanager
def full_precision() -> Iterator[None]:
    """Forward passes in float32, uncompiled, whatever the classifier's :class:`Compute` says."""
    before = _full.set(True)
    try:
        yield
    finally:
        _full.reset(before)


@contextmanager
def eager() -> Iterator[None]:
    """Forward passes uncompiled: a compiled network does not see hooks and forwards put on it later."""
    before = _eager.set(True)
    try:
        yield
    finally:
        _eager.reset(before)


def wants_full_precision() -> bool:
    """Whether a :func:`full_precision` block is open."""
    return _full.get()


def wants_eager() -> bool:
    """Whether an :func:`eager` block is open."""
    return _eager.get()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products of float32, of matrices and in convolutions, in TF32 or not; as before afterwards.

    By default PyTorch has TF32 in convolutions and not in products of matrices.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def lowered(compute: Compute, device: torch.device) -> Iterator[None]:
    """What is computed within is computed in the precision that ``compute`` says."""
    with ExitStack() as undo:
        if compute.precision != "float32":
            undo.enter_context(torch.autocast(device.type, getattr(torch, compute.precision)))
        if compute.tf32:
            undo.enter_context(tf32(True))
        yield


class Float32Linear(nn.Linear):
    """A linear layer that lower precision leaves alone."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class Compiled:
    """A module through torch.compile, for batches of any size; the module itself where that fails."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._run = torch.compile(module)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the module gives for ``inputs``; not differentiable."""
        from torch._dynamo import maybe_mark_dynamic
        from torch._dynamo.exc import TorchDynamoException

        for each in inputs:
            if len(each) > 1:  # of one row a graph of its own is made anyway
                maybe_mark_dynamic(each, 0)
        try:
            found: Tensor = self._run(*inputs)
        except TorchDynamoException as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            _LOG.warning("compute.compile: %s is not compiled: %s", type(self._module).__name__, reason)
            self._run = self._module
            found = self._module(*inputs)
        return found
