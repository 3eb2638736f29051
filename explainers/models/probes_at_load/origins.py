"""By which operations a network made what it returns, read off while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose results are probabilities or their logarithms, in whatever unit they are given afterwards.
SQUASHED = frozenset([
    "_softmax", "_log_softmax", "_safe_softmax", "sigmoid", "hardsigmoid", "log_sigmoid_forward",
])  # fmt: skip
# Operations that make logits: whatever else makes numbers that all lie within 0 and 1 may have bounded them.
LINEAR = frozenset(["mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution", "linear"])
# Operations whose results are taken for what their operands were.
_PASSING = frozenset([
    "add", "sub", "rsub", "mul", "div", "neg", "mean", "sum", "cat", "stack", "clone", "_to_copy", "copy",
    "index", "index_select", "gather", "log", "log2", "log10", "relu", "where", "masked_fill", "nan_to_num",
    "amax", "max", "maximum", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d",
])  # fmt: skip


def origins_of(run: Callable[[], Tensor]) -> frozenset[str]:
    """Names of the operations that made the tensor that ``run`` returns.

    Sums, products, means, maxima, logarithms, copies and views are passed through, so that the mean of two
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
        origins: frozenset[str] = frozenset([name])
        if name == "div" and len(made) > 1 and made[1]:
            origins = frozenset(["ratio"])
        elif name in _PASSING:
            origins = origins.union(*made) - {name}
        elif not made or name.endswith("_like") or name.startswith("new_"):
            origins = frozenset()  # a constant
        for each in _tensors([found]):
            self._made[each.untyped_storage().data_ptr()] = origins
        return found

    def of(self, tensor: Tensor) -> frozenset[str]:
        """What made a tensor; nothing for weights, inputs, constants, and sums of them."""
        return self._made.get(tensor.untyped_storage().data_ptr(), frozenset())


def _tensors(values: Any) -> list[Tensor]:
    listed = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    # Booleans and indices say which numbers are taken, and are not among them.
    return [each for each in listed if isinstance(each, Tensor) and each.is_floating_point()]
