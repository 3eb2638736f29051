"""Find where a transformer has all its tokens before its first block, and how they lie on the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.models.attention_calls import Attention, watching
from explainers.models.compute import eager
from explainers.models.cutting import Cut, cut
from explainers.models.hookable import hookable
from explainers.models.layout import Layout, layout_of
from explainers.models.own_thread import own_thread

_NEIGHBOURS = 9  # a cell and those around it
_LEAKS = 1e-4  # of the change of the cell's own token: a token that changes more sees the cell


def cut_before_blocks(network: nn.Module, inputs: Tensor, logits: Tensor) -> Cut:
    """Cut at the input of the innermost module around the first attention that no path bypasses.

    Parameters
    ----------
    network
        Any module that takes one tensor, in eval mode.
    inputs
        (2, C, H, W), two different inputs, normalised.
    logits
        What the network returns for them.

    Raises
    ------
    ValueError
        In words that continue "of this network, ...": why there is no such place.
    """
    reason = "no module takes all tokens before the first attention"
    for name, tokens in reversed(_around_attention(network, inputs)):
        if not _is_bypassed(network, name, tokens, inputs.flip(0), logits):
            try:
                return cut(network, f"{name}:input", inputs)
            except ValueError as error:
                reason = f"what comes before {name!r} cannot be cut off: {error}"
    raise ValueError(reason)


def _around_attention(network: nn.Module, inputs: Tensor) -> list[tuple[str, Tensor]]:
    """The modules that are running at the first attention, the outermost first, with their tokens."""
    running: list[tuple[str, Any]] = []
    first: list[tuple[str, Any]] = []
    names = {module: name for name, module in hookable(network).items()}
    calls = dict.fromkeys(names.values(), 0)
    mine = own_thread()

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not mine():
            return
        running.append((names[module], args[0] if args else None))
        calls[names[module]] += 1

    def end(*call: Any) -> None:  # noqa: ARG001
        if mine():
            running.pop()

    def note(attention: Attention) -> None:  # noqa: ARG001
        first.extend([] if first else running)

    handles = [module.register_forward_pre_hook(begin) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        with watching(note) as watch:
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not watch.calls:
        raise ValueError("no attention can be intercepted")
    return [
        (name, tokens)
        for name, tokens in first
        if name and isinstance(tokens, Tensor) and tokens.ndim == 3 and calls[name] == 1
    ]


def _is_bypassed(network: nn.Module, name: str, tokens: Tensor, others: Tensor, logits: Tensor) -> bool:
    """Whether other inputs lead to other logits, although the module ``name`` is given the same tokens."""
    module = network.get_submodule(name)
    mine = own_thread()
    handle = module.register_forward_pre_hook(lambda _, args: (tokens, *args[1:]) if mine() else None)
    try:
        with eager():
            found = network(others)
    finally:
        handle.remove()
    return not torch.allclose(found, logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))


def layout_behind(same: Tensor, size: tuple[int, int]) -> Layout:
    """The layout of T tokens, given which of them are the same for all images.

    Parameters
    ----------
    same
        (T,) bool.
    size
        (H, W) of the images.

    Raises
    ------
    ValueError
        If those are not the first few tokens, or the others fill no grid of the proportions of ``size``.
    """
    T, prefix = len(same), int(same.sum())
    try:
        layout = layout_of((T, 1), size, prefix)
    except ValueError:
        layout = None
    if layout is None or layout.prefix_tokens != prefix or not bool(same[:prefix].all()):
        said = f"its {T} tokens are no grid of patches behind tokens that are the same for all images"
        raise ValueError(said)
    return layout


def changed_cells(images: Tensor, layout: Layout) -> tuple[Tensor, list[int]]:
    """The first of two images, and what it is with one cell of the grid replaced by that of the second.

    Parameters
    ----------
    images
        (2, C, H, W).
    layout
        The layout of the tokens that are made of the images.

    Returns
    -------
    images, tokens
        (1 + k, C, H, W), and the position of the token of the cell that is another in each of the last k.
    """
    h, w = layout.grid
    # The corners, the middle and one in its row: they tell rows from columns, and one end from the other.
    cells = sorted({0, w - 1, (h // 2) * w, (h // 2) * w + w // 2, (h - 1) * w, h * w - 1})
    marks = F.one_hot(torch.tensor(cells, device=images.device), h * w).unflatten(1, (1, h, w))
    shown = F.interpolate(marks.to(images.dtype), images.shape[2:]) > 0
    changed = images[1:2].where(shown, images[:1])
    return torch.cat([images[:1], changed]), [layout.prefix_tokens + cell for cell in cells]


def changes_of(tokens: Tensor) -> Tensor:
    """(k, T): how far each token of (1 + k, T, D) is from the same token of the first image."""
    return (tokens[1:] - tokens[:1]).abs().amax(2)


def check_order(changes: Tensor, expected: list[int], layout: Layout) -> None:
    """Check that in each row of (k, T) changes the expected token has the largest.

    On grids of four rows and columns or more it may be a neighbour, since patches may overlap, and on grids
    of eight the one behind it, where a cell changes more than its neighbours. A cell that changes no token,
    as behind a ReLU it may, says nothing; half of the cells have to change some. Tokens farther away than
    half of the grid must not change at all: a token that sees as much of the image, as behind a normalisation
    over the whole of it, would tell of patches that are left out.

    Raises
    ------
    ValueError
        If it is another, or if a token farther away changes.
    """
    h, w = layout.grid
    changes = changes.cpu()
    telling = (changes > 0).any(1)
    changes, cells = changes[telling], torch.tensor(expected)[telling] - layout.prefix_tokens
    most = changes.argmax(1) - layout.prefix_tokens
    reach = int(min(h, w) >= 4) + (min(h, w) >= 8) * ((changes > 0).sum(1) > _NEIGHBOURS).int()
    few = 2 * len(cells) < len(expected)
    if few or bool((most < 0).any() or (_apart(most, cells, w) > reach).any()):
        raise ValueError("its tokens are no patches in the order of the rows of a grid")
    far = _apart(torch.arange(h * w), cells[:, None], w) > -(-max(h, w) // 2)
    of_patches = changes[:, layout.prefix_tokens :]
    if bool(((of_patches > _LEAKS * of_patches.amax(1, keepdim=True)) & far).any()):
        raise ValueError("its tokens see more of the image than their patches and what lies around them")


def _apart(one: Tensor, other: Tensor, w: int) -> Tensor:
    """How many rows or columns lie between cells of a grid w wide, whichever are more."""
    return torch.maximum((one // w - other // w).abs(), (one % w - other % w).abs())
