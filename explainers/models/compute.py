"""How the forward passes of a classifier are computed: in which precision, and compiled or not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from plugins.reasons import first_line

_LOG = logging.getLogger(__name__)


class Compute(BaseModel):
    """The ``[compute]`` table of a job.

    It applies to the classifier's forward passes that are not differentiated. Passes through which gradients
    are taken run in float32, because gradients underflow in float16 and cancel badly in bfloat16; gradients
    through the whole network use TF32 if ``tf32`` is set. The layer that gives the logits, softmax, maps and
    decompositions stay in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="precision of the network's forward passes; products are summed in float32",
    )
    tf32: bool = Field(
        False, description="whether forward passes compute float32 products in TF32, on GPUs that have it"
    )
    compile: bool = Field(
        False,
        description="whether the network is compiled with torch.compile; where that fails, it runs "
        "uncompiled, with a warning",
    )


# Context variables, so that a block holds for its own thread alone.
_full: ContextVar[bool] = ContextVar("full", default=False)
_eager: ContextVar[bool] = ContextVar("eager", default=False)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the block, forward passes run in float32 and uncompiled, whatever :class:`Compute` says."""
    before = _full.set(True)
    try:
        yield
    finally:
        _full.reset(before)


@contextmanager
def eager() -> Iterator[None]:
    """Within the block, forward passes run uncompiled.

    A compiled network ignores hooks, and replaced ``forward`` methods, that are set after its compilation.
    """
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
    """Within the block, allow or forbid TF32 in float32 matrix products and convolutions.

    The settings are restored afterwards. By default PyTorch uses TF32 in convolutions and not in matrix
    products.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def plainly() -> Iterator[None]:
    """Within the block, networks run in full precision without TF32, and tensors that are made can be kept.

    What is found out about a network must not depend on who asks, such as a step in inference mode.
    """
    with torch.inference_mode(False), torch.no_grad(), full_precision(), tf32(False):
        yield


@contextmanager
def lowered(compute: Compute, device: torch.device) -> Iterator[None]:
    """Within the block, operations on ``device`` run in the precision that ``compute`` says."""
    with ExitStack() as undo:
        if compute.precision != "float32":
            undo.enter_context(torch.autocast(device.type, getattr(torch, compute.precision)))
        if compute.tf32:
            undo.enter_context(tf32(True))
        yield


class Float32Linear(nn.Linear):
    """A linear layer that computes in the type of its weights, float32, also in a lower precision."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        # Autocast would cast the operands down again, so it is off here.
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class Compiled:
    """A module that runs through torch.compile, for batches of any size.

    Where the compilation fails, a warning is logged and the module itself runs from then on.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._run = torch.compile(module)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The module's output for ``inputs``; not differentiable."""
        from torch._dynamo import maybe_mark_dynamic
        from torch._dynamo.exc import TorchDynamoException

        for each in inputs:
            if len(each) > 1:  # torch.compile makes a separate graph for one row anyway
                maybe_mark_dynamic(each, 0)
        try:
            found: Tensor = self._run(*inputs)
        except TorchDynamoException as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            _LOG.warning("compute.compile: %s is not compiled: %s", type(self._module).__name__, reason)
            self._run = self._module
            found = self._module(*inputs)
        return found
