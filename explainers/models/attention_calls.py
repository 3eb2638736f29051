"""Watch the attention that a network computes, found by the calls it makes and not by its classes.

Attention is softmax(scores) @ values, over the last axis of the scores. A network asks for it in one of
three ways: by the fused function of PyTorch, by ``torch.nn.MultiheadAttention``, or by a softmax whose
result, possibly after steps that keep its number of elements, is multiplied by the values. Each of them is
intercepted within :func:`watching`, whoever makes the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Size, Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from explainers.models.compute import eager


@dataclass(frozen=True)
class Attention:
    """One attention of a network, for which the output is ``matrix @ values``.

    Attributes
    ----------
    matrix
        (B, heads, T, K), or with other axes before the last two: the very tensor that multiplies the values.
    values
        (B, heads, K, d).
    queries
        (B, heads, T, d), from which the scores were computed; None if no product gave the scores.
    """

    matrix: Tensor
    values: Tensor
    queries: Tensor | None


@dataclass
class Watch:
    """What :func:`watching` has seen.

    Attributes
    ----------
    calls
        Number of attentions.
    unread
        Number of softmaxes over the last axis of three or more that multiplied no values.
    """

    calls: int = 0
    unread: int = 0


Read = Callable[[Attention], None]
Weigh = Callable[[Size], Tensor]


@contextmanager
def watching(read: Read | None = None, weigh: Weigh | None = None) -> Iterator[Watch]:
    """Within the block, intercept every attention that is computed in this thread.

    A network that is compiled runs uncompiled. Nothing is changed on it.

    Parameters
    ----------
    read
        Called with each attention before its output is computed. Matrices are formed that a fused kernel
        would not form, and gradients can be taken on them.
    weigh
        From the shape of the scores, (..., T, K), to what is added to them: (..., 1, K) or (..., T, K). Keys
        at which it is -inf for every query are left out, whatever their scores and values are.
    """
    calls = _Calls(read, weigh)
    with eager(), calls:
        yield calls.watch


@dataclass
class _Trail:
    """Where a tensor comes from: scores have queries, and a matrix comes from a softmax."""

    queries: Tensor | None = None
    softmaxes: set[int] = field(default_factory=set)


class _Calls(TorchFunctionMode):
    def __init__(self, read: Read | None, weigh: Weigh | None) -> None:
        super().__init__()
        self.read, self.weigh = read, weigh
        self.watch = Watch()
        self.trails: Any = WeakTensorKeyDictionary()
        self.waiting: set[int] = set()  # softmaxes that multiplied nothing so far
        self.started = 0
        self.matrix: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **given)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **given)
        if func in _SOFTMAXES:
            return self._softmax(func, *args, **given)
        if func in _PRODUCTS:
            return self._product(func, *args, **given)
        found = func(*args, **given)
        if self.trails and isinstance(found, Tensor):
            self._follow(args, found)
        return found

    def _follow(self, args: tuple[Any, ...], found: Tensor) -> None:
        """A step that keeps the number of elements leads scores to scores, and a matrix to a matrix."""
        for each in args:
            if isinstance(each, Tensor) and each is not found and each.numel() == found.numel():
                trail = self.trails.get(each)
                if trail is not None:
                    before = self.trails.setdefault(found, _Trail())
                    before.softmaxes |= trail.softmaxes
                    before.queries = trail.queries if before.queries is None else before.queries

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (
                each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value)
            )
        shape = Size((*query.shape[:-1], key.shape[-2]))
        mask = _additive(attn_mask, query)
        if is_causal:
            mask = _additive(torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril(), query)
        if self.weigh is not None:
            weights = self.weigh(shape).to(query.dtype)
            mask = weights if mask is None else mask + weights
            # A value or key that is not finite would reach the output in spite of its weight of zero.
            absent = weights.isneginf().all(-2).unsqueeze(-1)
            key, value = key.masked_fill(absent, 0), value.masked_fill(absent, 0)
        if self.read is None:
            self.watch.calls += 1
            return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, scale=scale)
        scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.mT
        matrix = (scores if mask is None else scores + mask).softmax(-1)
        return self._attend(F.dropout(matrix, dropout_p), value, query) @ value

    def _attend(self, matrix: Tensor, values: Tensor, queries: Tensor | None) -> Tensor:
        self.watch.calls += 1
        self.matrix = matrix
        if self.read is not None:
            self.read(Attention(matrix, values, queries))
        return matrix

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        given = _SIGNATURE.bind(*args, **kwargs)
        given.apply_defaults()
        wanted, given.arguments["need_weights"] = given.arguments["need_weights"], False
        read, queries = self.read, given.arguments["query"]
        if wanted and read is None:
            self.read = _ignore  # so that the matrix is formed
        try:
            with self:
                output, _ = _multi_head_attention(*given.args, **given.kwargs)
        finally:
            self.read = read
        if not wanted:
            return output, None
        assert self.matrix is not None
        weights = self.matrix.mean(1) if given.arguments["average_attn_weights"] else self.matrix
        return output, weights if queries.ndim == 3 else weights.squeeze(0)

    def _softmax(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dim = kwargs.get("dim", args[0] if args else None)
        if x.ndim < 3 or dim not in {-1, x.ndim - 1}:
            return func(x, *args, **kwargs)
        before = self.trails.get(x)
        if self.weigh is not None:
            weights = self.weigh(x.shape).to(x.dtype)
            x = (x + weights).masked_fill(weights.isneginf(), -torch.inf)
        found: Tensor = func(x, *args, **kwargs)
        self.started += 1
        self.waiting.add(self.started)
        self.watch.unread = len(self.waiting)
        self.trails[found] = _Trail(before and before.queries, {self.started})
        return found

    def _product(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        operands = _operands(func, args)
        if operands is None:
            return func(*args, **kwargs)
        left, right = operands
        trail = self.trails.get(left)
        if trail is None or not trail.softmaxes:
            found = func(*args, **kwargs)
            self.trails[found] = _Trail(queries=left)
            return found
        self.waiting -= trail.softmaxes
        self.watch.unread = len(self.waiting)
        if self.weigh is not None:
            absent = self.weigh(left.shape).isneginf().all(-2).unsqueeze(-1)
            values = right.masked_fill(absent, 0)
            args = tuple(values if each is right else each for each in args)
            right = values
        self._attend(left, right, trail.queries)
        return func(*args, **kwargs)


def _ignore(attention: Attention) -> None:
    pass


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)


def _operands(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """The two tensors of a batched product of matrices; None if the call is none."""
    if func is torch.einsum:
        equation, *tensors = args
        left, _, rest = str(equation).replace(" ", "").partition(",")
        right, _, output = rest.partition("->")
        # Scores have the keys' place last and sum over the features; outputs sum over the keys' place.
        to_scores = left[-1:] == right[-1:], left[:-1] + right[-2:-1]
        to_output = left[-1:] == right[-2:-1], left[:-1] + right[-1:]
        if len(tensors) != 2 or (True, output) not in {to_scores, to_output}:
            return None
        args = tuple(tensors)
    if len(args) != 2 or not all(isinstance(each, Tensor) and each.ndim >= 3 for each in args):
        return None
    return args[0], args[1]


_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum}
_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
# This function of PyTorch hands itself over as a whole. A copy that does not makes its calls one by one.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    vars(F) | {"has_torch_function": lambda tensors: False},  # noqa: ARG005
    argdefs=F.multi_head_attention_forward.__defaults__,
)
