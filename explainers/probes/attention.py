"""Read the attention matrices of vision transformers, whatever library they come from.

Transformers run fused kernels that never form the matrix softmax(q k^T / sqrt(d)). Within a ``with`` block
of this module it is formed; :mod:`explainers.models.attention_calls` says which calls are intercepted.
Methods that combine the matrices of all blocks need more than that, and :func:`attention_tokens` tries it on
seeded inputs: every attention is self-attention over the same tokens, one block follows the other, and
nothing else mixes tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from explainers.models.attention_calls import Attention, Watch, watching
from explainers.models.candidates import first_tensor, watched
from explainers.models.classifier import Classifier
from explainers.models.compute import full_precision
from explainers.models.layout import Layout
from explainers.models.token_places import changed_cells, changes_of, check_order, layout_behind
from explainers.probes.additivity import probe_inputs

_CHANGED = 1e-3  # of the largest change: rounding stays far below, and what a token passes on far above
_SUMS = 1e-3  # how far the sum of a row of attention may be from one


@contextmanager
def explicit_attention(read: Callable[[Tensor], None]) -> Iterator[Watch]:
    """Within the block, call ``read`` with the matrix of every attention that a network computes.

    Parameters
    ----------
    read
        It is called with a matrix (B, heads, T, T) for each attention, in their order. The matrix is the very
        tensor by which the values are multiplied, so that :func:`torch.autograd.grad` can take gradients on
        it; it requires a gradient if the inputs do.
    """
    with watching(lambda attention: read(attention.matrix)) as watch:
        yield watch


@dataclass(frozen=True)
class AttentionTokens:
    """The tokens that are the rows and columns of a network's attention matrices.

    Attributes
    ----------
    layout
        The prefix tokens, and the grid of patches behind them.
    read
        (T,) bool: the tokens whose output of the last attention reaches the logits.
    reaching
        Which of the network's attentions reach the logits, as positions in the order of their computation.
    """

    layout: Layout
    read: Tensor
    reaching: tuple[int, ...]


_known: WeakKeyDictionary[Classifier, AttentionTokens | str] = WeakKeyDictionary()


def attention_tokens(classifier: Classifier) -> AttentionTokens:
    """The tokens that a network's attention is over; the network is tried once, whatever its target layer.

    Raises
    ------
    ValueError
        In one line, if the matrices of all blocks together do not say how the patches reach the logits.
    """
    found = _known.get(classifier)
    if found is None:
        try:
            found = _examine(classifier)
        except ValueError as error:
            found = str(error)
        _known[classifier] = found
    if isinstance(found, str):
        raise ValueError(found)
    return found


def unread_attention(classifier: Classifier) -> str | None:
    """Why the network's attention cannot be read: what :func:`attention_tokens` says; None if it can."""
    try:
        attention_tokens(classifier)
    except ValueError as error:
        return str(error)
    return None


# Autograd refuses tensors that were made in inference mode.
@torch.inference_mode(False)
@torch.enable_grad()
def _examine(classifier: Classifier) -> AttentionTokens:
    inputs = probe_inputs(classifier)[:2].requires_grad_()
    seen: list[Attention] = []
    with full_precision():
        with watching(seen.append) as watch:
            logits = classifier.logits(inputs)
        if not seen:
            raise ValueError("no attention can be intercepted")
        gradients = _gradients(logits, seen)
        reaching = tuple(call for call, gradient in enumerate(gradients) if gradient is not None)
        if not reaching:
            raise ValueError("its logits depend on no attention")
        blocks = [seen[call] for call in reaching]
        _check_shapes(blocks, watch, len(inputs))
        _check_sequence(blocks)
        last = gradients[reaching[-1]]
        assert last is not None
        values = blocks[0].values.detach()
        layout = layout_behind((values[0] == values[1]).all(-1).all(0), classifier.input_size)
        _check_mixing(classifier, inputs.detach(), layout, reaching)
    return AttentionTokens(layout, last.abs().amax((0, 1, 3)) > 0, reaching)


def _gradients(logits: Tensor, seen: list[Attention]) -> tuple[Tensor | None, ...]:
    """The gradient of the logits, each with a weight of its own, on each matrix; None if nothing leads on."""
    weights = torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype, device=logits.device)
    matrices = [each.matrix for each in seen]
    if not all(matrix.requires_grad for matrix in matrices):
        raise ValueError("one attention does not depend on the image")
    return torch.autograd.grad((logits * weights).sum(), matrices, retain_graph=True, allow_unused=True)


def _check_shapes(seen: list[Attention], watch: Watch, inputs: int) -> None:
    if watch.unread:
        raise ValueError("a softmax of it multiplies no values, so that some of its attention may be missed")
    lengths: set[int] = set()
    for each in seen:
        *batch, T, K = each.matrix.shape
        if T != K:
            raise ValueError(f"one attention is of {T} by {K} tokens, as in a pool or a pyramid")
        if each.queries is not None and not each.queries.requires_grad:
            raise ValueError(f"one attention has {T} queries that are no part of the image, as in a pool")
        if batch[0] != inputs:
            raise ValueError(f"its attention is within windows of {T} tokens")
        if len(batch) != 2:
            raise ValueError(f"its attention has matrices of the shape {tuple(each.matrix.shape)}")
        lengths.add(T)
    if len(lengths) > 1:
        raise ValueError(f"its blocks attend over different numbers of tokens: {sorted(lengths)}")
    matrices = [each.matrix.detach() for each in seen]
    if any(bool((each.sum(-1) - 1).abs().max() > _SUMS or each.min() < -_SUMS) for each in matrices):
        raise ValueError("its attention is mixed between heads, so that its rows are no averages")


def _check_sequence(blocks: list[Attention]) -> None:
    for before, after in pairwise(blocks):
        (reaches,) = torch.autograd.grad(
            after.matrix.square().sum(), before.matrix, retain_graph=True, allow_unused=True
        )
        if reaches is None:
            raise ValueError("its attention is computed side by side, and not block after block")


@torch.no_grad()
def _check_mixing(classifier: Classifier, images: Tensor, layout: Layout, reaching: tuple[int, ...]) -> None:
    """Check that a token stays in its place, if attention lets every token see itself alone.

    Each cell that is changed in the pixels has to change its own token most in the first attention, and no
    further tokens in the last, nor in what any module takes or gives behind the first.
    """
    changed, expected = changed_cells(images, layout)
    values: list[Tensor] = []
    mixed: list[Tensor] = []

    def changes_at(call: int) -> Tensor:
        return changes_of(values[call].transpose(1, 2).flatten(2))

    def look(changes: Tensor) -> None:
        first = changes_at(reaching[0])
        reached = changes > _CHANGED * changes.amax(1, keepdim=True)
        mixed.append((reached & (first <= _CHANGED / 10 * first.amax(1, keepdim=True))).any())

    def separate(attention: Attention) -> None:
        values.append(attention.values)
        T, K = attention.matrix.shape[-2:]
        attention.matrix.copy_(torch.eye(T, K))

    def note(name: str, side: str, module: nn.Module, taken_or_given: Any) -> None:  # noqa: ARG001
        tokens, _ = first_tensor(taken_or_given)
        T = layout.shape[0]
        if tokens is None or len(values) <= reaching[0] or tokens.ndim != 3:
            return
        if tokens.shape[:2] == (len(changed), T) and tokens.shape[2] != T:  # else they may be scores
            look(changes_of(tokens))

    with watching(separate), watched(classifier.network, note):
        classifier.logits(changed)
    check_order(changes_at(reaching[0]), expected, layout)
    look(changes_at(reaching[-1]))
    if bool(torch.stack(mixed).any()):
        raise ValueError("its tokens are mixed by more than attention")
