"""Run a transformer on some of its patches, found by what the network does and not by its class.

All tokens stand, with their positions, before the first block. There patches are *dropped*, if that block and
all behind it take their tokens in any order and number. Where they do not, since a bias or a rotation belongs
to each place, patches are *masked*: no query attends to them, and no mean over the patches counts them, so
that whatever is computed for other tokens is the same as without them. Both are tried on seeded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from explainers.models.attention_calls import Attention, watching
from explainers.models.cutting import Cut
from explainers.models.layout import MOST_PREFIX_TOKENS, Layout
from explainers.models.token_places import (
    changed_cells,
    changes_of,
    check_order,
    cut_before_blocks,
    layout_behind,
)

_TOLERANCE = 1e-3  # a share of what leaving out patches changes in the logits
_ROUNDING = 32  # in units of the last place of the largest logit
_MOST_ROUNDING = 0.02  # of that change; beyond it, a comparison says nothing

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PatchTokens:
    """Where a network has all its tokens, and how patches are left out of them.

    Attributes
    ----------
    cut
        The network in two parts: from normalised inputs to the tokens (B, prefix + N, D), and from there to
        its output.
    layout
        The number of prefix tokens, and the grid of the N patches behind them.
    drops
        Whether patches are dropped. Otherwise they are masked.
    needs_patches
        Whether there are no logits without any patch.
    """

    cut: Cut
    layout: Layout
    drops: bool
    needs_patches: bool

    def length(self, kept: int) -> int:
        """Number of tokens that the blocks compute when ``kept`` patches are present."""
        return self.layout.prefix_tokens + (kept if self.drops else self.layout.units.count)

    def run(self, head: Head, tokens: Tensor, keep: Tensor) -> Tensor:
        """What ``head`` gives for tokens (B, prefix + N, D) when the patches ``keep`` (B, N) are present.

        Where patches are dropped, every row has to keep equally many.
        """
        if self.drops:
            return head(kept_tokens(tokens, keep))
        with _masking(keep):
            return head(tokens)


def find_tokens(network: nn.Module, inputs: Tensor) -> PatchTokens:
    """Find where and how patches of a transformer can be left out.

    Parameters
    ----------
    network
        Any module that takes one tensor and returns logits, in eval mode. Gradients should be off.
    inputs
        (2, C, H, W), two different inputs, normalised.

    Raises
    ------
    ValueError
        In words that continue "of this network, ...": why they cannot.
    """
    logits = network(inputs)
    parts = cut_before_blocks(network, inputs, logits)
    tokens = parts.backbone(inputs)
    H, W = inputs.shape[2:]
    layout = layout_behind((tokens[0] == tokens[1]).all(-1), (H, W))
    images, expected = changed_cells(inputs, layout)
    check_order(changes_of(parts.backbone(images)), expected, layout)
    drops, needs_patches = _Trial(parts.head, tokens, logits, layout.units.count).ways()
    return PatchTokens(parts, layout, drops, needs_patches)


class _Trial:
    """The head behind the tokens of two inputs, with all patches and with half of them.

    Parameters
    ----------
    head
        From tokens to what the network returns.
    tokens
        (2, prefix + N, D).
    logits
        (2, C), those of all tokens.
    patches
        N.
    """

    def __init__(self, head: Head, tokens: Tensor, logits: Tensor, patches: int) -> None:
        self.head, self.tokens, self.logits = head, tokens, logits
        self.prefix = tokens.shape[1] - patches
        order = torch.rand(2, patches, generator=torch.Generator().manual_seed(0)).argsort(1)
        self.order = order.to(tokens.device)
        self.half = self.order < patches // 2
        self.none = torch.zeros_like(self.half)

    def ways(self) -> tuple[bool, bool]:
        """Whether patches are dropped, and whether some patch is needed for logits."""
        masked, dropped = self._masked(), self._dropped()
        drops = dropped is not None and (masked is None or self._agree(dropped, masked))
        if masked is None and not drops:
            raise ValueError("patches that are left out of attention still reach the logits")
        if masked is None:
            return drops, self.prefix == 0 or _without_value(lambda: self._drop(self.none))
        # The matrices are formed: a fused kernel may take attention to nothing as zero.
        needs = _without_value(lambda: self._mask(self.none, self.tokens, read=_ignore))
        return drops, needs or (drops and _without_value(lambda: self._drop(self.none)))

    def _mask(self, keep: Tensor, tokens: Tensor, read: Callable[[Attention], None] | None = None) -> Tensor:
        with _masking(keep, read):
            return self.head(tokens)

    def _drop(self, keep: Tensor) -> Tensor:
        return self.head(kept_tokens(self.tokens, keep))

    def _masked(self) -> Tensor | None:
        """Logits when half of the patches are masked; None if these reach them in another way."""
        shown = F.pad(self.half, (self.prefix, 0), value=True)[..., None]
        try:
            whole = self._mask(~self.none, self.tokens)
            found = self._mask(self.half, self.tokens)
            again = self._mask(self.half, self.tokens.where(shown, 2 * self.tokens.flip(0)))
        except Exception:  # a head that cannot run in this way says so in a way of its own
            return None
        self._check_change(found)
        return found if self._agree(whole, self.logits) and self._agree(found, again) else None

    def _dropped(self) -> Tensor | None:
        """Logits when half of the patches are dropped; None if the head asks for their order or number."""
        patches = self.tokens[:, self.prefix :].take_along_dim(self.order[..., None], 1)
        try:
            found = self._drop(self.half)
            shuffled = self.head(torch.cat([self.tokens[:, : self.prefix], patches], 1))
        except Exception:  # as above
            return None
        self._check_change(found)
        return found if self._agree(shuffled, self.logits) else None

    def _check_change(self, found: Tensor) -> None:
        """Note what leaving out patches changes, which has to be far above rounding."""
        self.change = float((found - self.logits).abs().max())
        self.rounding = _ROUNDING * torch.finfo(self.logits.dtype).eps * float(self.logits.abs().max())
        if self.rounding > _MOST_ROUNDING * self.change:
            raise ValueError("leaving out patches changes the logits too little to be checked")

    def _agree(self, found: Tensor, expected: Tensor) -> bool:
        """Whether logits differ far less than leaving out patches changes them; NaN agrees with nothing."""
        allowed = max(_TOLERANCE * self.change, self.rounding)
        return float((found - expected).abs().max()) <= allowed


def _ignore(attention: Attention) -> None:
    pass


def _without_value(run: Callable[[], Tensor]) -> bool:
    """Whether there are no finite logits."""
    try:
        return not bool(run().isfinite().all())
    except Exception:  # a head that cannot run on no patch says so in a way of its own
        return True


def kept_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """Leave out the tokens of absent patches.

    Parameters
    ----------
    tokens
        (B, prefix + N, D).
    keep
        (B, N) bool, the patches that are present; every row keeps the same number k.

    Returns
    -------
    Tensor
        (B, prefix + k, D): the prefix tokens and those of the present patches, in their order.
    """
    prefix = tokens.shape[1] - keep.shape[1]
    first = torch.arange(prefix, device=keep.device).expand(len(keep), prefix)
    # nonzero lists the kept patches row by row, k in each row.
    patches = keep.nonzero()[:, 1].view(len(keep), int(keep[0].sum())) + prefix
    return tokens.take_along_dim(torch.cat([first, patches], 1).unsqueeze(-1), 1)


@contextmanager
def _masking(keep: Tensor, read: Callable[[Attention], None] | None = None) -> Iterator[None]:
    """Within the block, no attention and no mean over the patches sees those outside ``keep`` (B, N)."""
    B, N = keep.shape
    absent = torch.zeros(keep.shape, device=keep.device).masked_fill(~keep, -torch.inf)

    def weigh(shape: Size) -> Tensor:
        extra = shape[-1] - N
        if shape[0] % B or not 0 <= extra <= MOST_PREFIX_TOKENS:
            raise ValueError(f"an attention is over {shape[-1]} tokens, and there are {N} patches")
        weights = F.pad(absent, (extra, 0)).repeat_interleave(shape[0] // B, 0)
        return weights.view(shape[0], *[1] * (len(shape) - 2), -1)

    with _MeansOfPresent(keep), watching(read, weigh) as watch:
        yield
    if not watch.calls:
        raise ValueError("there is no attention in which patches could be masked")


class _MeansOfPresent(TorchFunctionMode):
    """Means over tokens (B, prefix + N, D) count the prefix and the patches ``keep`` (B, N) alone."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func not in {torch.mean, Tensor.mean} or not args or args[0].ndim != 3:
            return func(*args, **given)
        x, dim = args[0], given.get("dim", args[1] if len(args) > 1 else None)
        extra = x.shape[1] - self.keep.shape[1]
        over_tokens = dim in (1, -2, (1,), (-2,), [1], [-2])
        if not over_tokens or not 0 <= extra <= MOST_PREFIX_TOKENS or len(x) != len(self.keep):
            return func(*args, **given)
        present = F.pad(self.keep, (extra, 0), value=True)[..., None]
        keepdim = bool(given.get("keepdim", args[2] if len(args) > 2 else False))
        return x.masked_fill(~present, 0).sum(1, keepdim=keepdim) / present.sum(1, keepdim=keepdim)
