"""Record what modules give on a fixed input, so that they need not run again.

The head of a network that is cut by replay reads nothing of the modules that are done before the layer, and
yet runs them. Their outputs are always the same, and are given from a record instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from explainers.models.hookable import hookable
from explainers.models.own_thread import own_thread
from explainers.models.replacing import replace_on


class StoppedError(BaseException):
    """A forward pass is stopped on purpose; no ``Exception``, which a network's own code might catch."""


@dataclass(eq=False)
class Call:
    """One call of a module in a forward pass.

    Attributes
    ----------
    module
        The module.
    within
        The position of the call during which this one was made; None for the network's own.
    begun, ended
        When it began and ended, as numbers that grow; an end is None after an exception.
    """

    module: nn.Module
    within: int | None
    begun: int
    ended: int | None = None


def calls_of(
    network: nn.Module, inputs: Tensor, keep: Mapping[int, nn.Module] | None = None
) -> tuple[list[Call], dict[int, Any]]:
    """Run a network and list the calls of its modules, in the order in which they begin.

    Parameters
    ----------
    network
        The network, in eval mode.
    inputs
        (B, C, H, W), normalised.
    keep
        The calls whose outputs are wanted, by their positions in the list. The pass ends as soon as all of
        them are there; by default it runs to its end.

    Returns
    -------
    calls
        All calls up to there.
    outputs
        The outputs of the calls in ``keep``, by position.

    Raises
    ------
    RuntimeError
        If a call in ``keep`` is one of another module.
    """
    calls: list[Call] = []
    outputs: dict[int, Any] = {}
    running: list[int] = []
    clock = iter(range(1 << 62))
    mine = own_thread()

    def begin(module: nn.Module, _: Any) -> None:
        if not mine():
            return
        within = running[-1] if running else None
        running.append(len(calls))
        calls.append(Call(module, within, next(clock)))

    def end(module: nn.Module, _: Any, output: Any) -> None:
        if not mine():
            return
        while calls[place := running.pop()].module is not module:
            pass  # a call that an exception ended, and that the network went on from
        calls[place].ended = next(clock)
        if keep is not None and place in keep:
            if keep[place] is not module:
                raise RuntimeError("the network calls other modules for the same input")
            outputs[place] = output
            if len(outputs) == len(keep):
                raise StoppedError

    with ExitStack() as undo:
        for module in hookable(network).values():
            undo.callback(module.register_forward_pre_hook(begin).remove)
            undo.callback(module.register_forward_hook(end).remove)
        with suppress(StoppedError):
            network(inputs)
    return calls, outputs


@dataclass(frozen=True)
class _Leaf:
    """A value in an output, and how it follows from the number of rows.

    Attributes
    ----------
    value
        The value for one row.
    axis
        The axis along which rows are added; None if the value is the same for any number of rows.
    apart
        Whether the parts of one row lie apart, between those of the others.
    """

    value: Any
    axis: int | None = None
    apart: bool = False

    def of(self, rows: int, lend: bool) -> Any:
        """The value for a number of equal rows; a view of the record if ``lend`` allows it."""
        if not isinstance(self.value, Tensor):
            return self.value
        if self.axis is None:
            return self.value if lend else self.value.clone()
        if self.apart:
            return self.value.repeat_interleave(rows, self.axis)
        sizes = list(self.value.shape)
        if lend and sizes[self.axis] == 1:
            return self.value.expand(*sizes[: self.axis], rows, *sizes[self.axis + 1 :])
        return self.value.repeat([rows if axis == self.axis else 1 for axis in range(len(sizes))])


@dataclass(frozen=True)
class Stub:
    """The recorded output of one call of a module."""

    module: nn.Module
    leaves: Sequence[_Leaf]
    spec: TreeSpec

    def of(self, rows: int, lend: bool) -> Any:
        """The output for a number of equal rows; views of the record if ``lend`` allows them."""
        return tree_unflatten([leaf.of(rows, lend) for leaf in self.leaves], self.spec)

    @property
    def writes(self) -> int:
        """How often the record was written to."""
        return sum(leaf.value._version for leaf in self.leaves if isinstance(leaf.value, Tensor))


def record(network: nn.Module, carrier: Tensor, calls: Mapping[int, nn.Module]) -> dict[int, Stub]:
    """Record the outputs of calls for the one row of ``carrier``.

    How an output follows from the number of rows is found by running two equal rows as well. A call is left
    out if that cannot be told.

    Parameters
    ----------
    network
        The network, in eval mode.
    carrier
        (1, C, H, W), normalised.
    calls
        The modules that are called, by the positions of the calls; see :func:`calls_of`.
    """
    device = carrier.device.type
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        _, one = calls_of(network, carrier, calls)
        _, two = calls_of(network, carrier.repeat(2, *[1] * (carrier.ndim - 1)), calls)
        found = {place: _stub(module, one[place], two[place]) for place, module in calls.items()}
    return {place: stub for place, stub in found.items() if stub is not None}


def _stub(module: nn.Module, one: Any, two: Any) -> Stub | None:
    values, spec = tree_flatten(one)
    doubled, its_spec = tree_flatten(two)
    if spec != its_spec:
        return None
    leaves = [_leaf(*pair) for pair in zip(values, doubled, strict=True)]
    return Stub(module, [leaf for leaf in leaves if leaf], spec) if all(leaves) else None


def _leaf(one: Any, two: Any) -> _Leaf | None:
    """How a value for one row becomes one for two equal rows; None if that cannot be told."""
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return _Leaf(one) if type(one) is type(two) and isinstance(one, _PLAIN) and one == two else None
    one = one.clone()  # it may be a view of something that is written to later
    if one.shape == two.shape:
        return _Leaf(one) if _same(one, two) else None
    if one.ndim != two.ndim:
        return None
    axes = [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]
    if len(axes) != 1 or two.shape[axes[0]] != 2 * one.shape[axes[0]]:
        return None
    leaves = (_Leaf(one, axes[0]), _Leaf(one, axes[0], apart=True))
    return next((leaf for leaf in leaves if _same(leaf.of(2, lend=False), two)), None)


_PLAIN = (bool, int, float, str, type(None))


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one shape are equal up to rounding, as far as their layouts are concerned."""
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    scale = float(expected.abs().nan_to_num(posinf=0).max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def give(
    undo: ExitStack, stubs: Sequence[Stub], rows: int, lend: bool, mine: Callable[[], bool]
) -> deque[Stub]:
    """Let modules give their recorded outputs until ``undo`` closes, one after the other.

    Returns
    -------
    deque
        The stubs that are still waiting for their calls. When none is left, all modules run as they are.
    """
    waiting = deque(stubs)
    for module in {id(stub.module): stub.module for stub in stubs}.values():
        _replace(undo, module, waiting, rows, lend, mine)
    return waiting


def _replace(
    undo: ExitStack, module: nn.Module, waiting: deque[Stub], rows: int, lend: bool, mine: Callable[[], bool]
) -> None:
    whole = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if waiting and waiting[0].module is module and mine():
            return waiting.popleft().of(rows, lend)
        return whole(*args, **kwargs)

    replace_on(undo, module, "forward", forward)
