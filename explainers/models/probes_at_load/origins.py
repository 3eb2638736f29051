"""By which operations a network made what it returns, read off while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SOFTMAX = frozenset(["_softmax", "_log_softmax", "_safe_softmax"])
# Operations whose results can all lie within 0 and 1 because they are bounded there.
BOUNDED = frozenset([
    "sigmoid", "hardsigmoid", "tanh", "hardtanh", "clamp", "clamp_max", "minimum", "reciprocal", "ratio",
    "exp", "erf", "erfc", "atan",
])  # fmt: skip
# Operations whose results are taken for what their operands were.
_PASSING = frozenset([
    "add", "sub", "rsub", "mul", "div", "neg", "mean", "sum", "cat", "stack", "clone", "_to_copy", "copy",
    "index", "index_select", "gather",
])  # fmt: skip


def origins_of(run: Callable[[], Tensor]) -> frozenset[str]:
    """Names of the operations that made the tensor that ``run`` returns.

    Sums, products with constants, means, copies and views are passed through, so that the mean of two
    sigmoids was made by ``sigmoid``, and a sum of matrix products by ``mm``.
    """
    with _Origins() as origins:
        found = run()
    return origins.of(found)


class _Origins(TorchDispatchMode):
    """Records for the memory of every tensor by which operations its values were made."""

    def __init__(self) -> None:
        super().__init__()
        # By the address of the memory. An address that is used again is recorded again.
        self._made: dict[int, frozenset[str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found  # it shares its operand's memory
        made = [self.of(each) for each in _tensors(args)]
        name = func.overloadpacket.__name__.removesuffix("_")
        origins: frozenset[str] = frozenset()
        if name == "div" and len(made) > 1 and made[1]:
            name = "ratio"
        elif name in _PASSING:
            origins = origins.union(*made)
        for each in _tensors([found]):
            self._made[each.untyped_storage().data_ptr()] = origins or frozenset([name])
        return found

    def of(self, tensor: Tensor) -> frozenset[str]:
        """What made a tensor; nothing for weights and inputs."""
        return self._made.get(tensor.untyped_storage().data_ptr(), frozenset())


def _tensors(values: Any) -> list[Tensor]:
    listed = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return [each for each in listed if isinstance(each, Tensor)]
