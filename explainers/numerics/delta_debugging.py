"""Find 1-minimal sets of units: greedy passes where effects add up, delta debugging where they interact.

A set is *preserved* if the classifier still predicts the target when every unit outside the set is zero.
It is *1-minimal* if it is preserved and no set with one unit less is preserved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.numerics.answers import Answers

Search = Generator[Tensor, Any, Tensor]

_FIRST_GROUP = 2  # sets that a search asks about at once, before it asks about more
_HANDICAP = 100  # in units of rounding; the error of a thousand subtractions is about thirty


def ddmin(order: Tensor) -> Search:
    """The minimising delta debugging algorithm (Zeller and Hildebrandt, 2002, fig. 4) for one image.

    It assumes that the set of all units is preserved and that the empty set is not. Where the algorithm
    leaves a choice, the first chunk that is preserved is kept, or else the last chunk that can be left out is
    removed. Chunks are therefore asked about in this order, and no longer once one is found.

    Parameters
    ----------
    order
        (U,) int64 on the CPU, every unit once; chunks are consecutive in this order.

    Yields
    ------
    Tensor
        (n, U) bool, candidate sets; the caller sends back (n,) bool, whether each of them is preserved.

    Returns
    -------
    Tensor
        (U,) bool, a 1-minimal set.
    """
    total = len(order)
    kept, chunks = order, 2
    while len(kept) > 1:
        parts = kept.tensor_split(chunks)
        sets = torch.stack([_mask(part, total) for part in parts])
        alone = yield from _first_preserved(sets)
        if alone is not None:
            kept, chunks = parts[alone], 2
            continue
        from_the_end = yield from _first_preserved((_mask(kept, total) & ~sets).flip(0))
        if from_the_end is not None:
            last = chunks - 1 - from_the_end
            kept, chunks = torch.cat([*parts[:last], *parts[last + 1 :]]), max(chunks - 1, 2)
        elif chunks < len(kept):
            chunks = min(2 * chunks, len(kept))
        else:
            break
    return _mask(kept, total)


def _first_preserved(sets: Tensor) -> Generator[Tensor, Tensor, int | None]:
    """Ask about sets in order, in groups that double in size; return the index of the first preserved."""
    start, size = 0, _FIRST_GROUP
    while start < len(sets):
        preserved = yield sets[start : start + size]
        if preserved.any():
            return start + int(preserved.int().argmax())
        start, size = start + size, 2 * size
    return None


def _mask(units: Tensor, total: int) -> Tensor:
    """(total,) bool, True for the given units."""
    return torch.zeros(total, dtype=torch.bool).index_fill_(0, units, True)


def search_together(searches: Sequence[Search], test: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Advance the searches of many images together, so that their candidates share batches.

    No set is tested twice for the same image.

    Parameters
    ----------
    searches
        One generator per image, such as :func:`ddmin` returns.
    test
        From (M,) image numbers and (M, U) bool sets to (M,) bool, whether each set is preserved; all on the
        CPU.

    Returns
    -------
    Tensor
        (len(searches), U) bool, what each search returned.
    """
    answers = Answers(test)
    asked: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}

    def advance(image: int, reply: Tensor | None) -> None:
        """Let a search go on until it asks about sets that are not all known, or ends."""
        try:
            while True:
                asked[image] = searches[image].send(reply)
                reply = answers.recall(image, asked[image])
                if reply is None:
                    return
        except StopIteration as stop:
            asked.pop(image, None)
            found[image] = stop.value

    for image in range(len(searches)):
        advance(image, None)
    while asked:
        counts = [len(sets) for sets in asked.values()]
        images = torch.tensor(list(asked)).repeat_interleave(torch.tensor(counts))
        replies = answers(images, torch.cat(list(asked.values()))).split(counts)
        for image, reply in zip(list(asked), replies, strict=True):
            advance(image, reply)
    return torch.stack([found[image] for image in range(len(searches))])


@dataclass(frozen=True)
class Sums:
    """Logits that are sums over units.

    ``logits(b, S) = bias[b] + sum over u in S of scale[b, u] * row[b, u]``.

    ``row[b, u]`` is ``rows[index[b, u]]``, so that images can share rows. There are B images, U units, C
    classes and R rows.

    Attributes
    ----------
    bias
        (B, C) logits of the empty set.
    scale
        (B, U) float, the factor of each unit's row.
    rows
        (R, C) float, contributions to the logits.
    index
        (B, U) int64, the row of each unit, in [0, R).
    """

    bias: Tensor
    scale: Tensor
    rows: Tensor
    index: Tensor

    def logits(self, images: Tensor, units: Tensor, present: Tensor) -> Tensor:
        """Logits of b images, each with some units present.

        Parameters
        ----------
        images
            (b,) int64, in [0, B).
        units
            (b, n) int64, in [0, U).
        present
            (b, n) bool, which of these units are present; all other units are absent.

        Returns
        -------
        Tensor
            (b, C).
        """
        scale = self.scale[images[:, None], units] * present
        index = self.index[images[:, None], units]
        return self.bias[images] + F.embedding_bag(index, self.rows, mode="sum", per_sample_weights=scale)

    def against_zero(self, targets: Tensor) -> Sums:
        """Two classes per image: a logit of zero (class 0), and that of its target (class 1).

        Parameters
        ----------
        targets
            (B,) int64.
        """
        own = self.rows[self.index, targets[:, None]] * self.scale
        return Sums(
            F.pad(self.bias.gather(1, targets[:, None]), (1, 0)),
            own,
            F.pad(own.new_ones(1, 1), (1, 0)),
            torch.zeros_like(self.index),
        )

    def margins(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Contribution of each unit to the margin between the target's logit and its strongest rival's.

        Parameters
        ----------
        targets
            (B,) int64.
        logits
            (B, C), which determine the strongest rival of each target.

        Returns
        -------
        Tensor
            (B, U).
        """
        rivals = logits.scatter(1, targets[:, None], -torch.inf).argmax(1)
        return self.scale * (self.rows[self.index, targets[:, None]] - self.rows[self.index, rivals[:, None]])


def greedy_passes(sums: Sums, targets: Tensor) -> Tensor:
    """Find 1-minimal sets where logits are sums over units.

    Units are tried in rising order of their contribution to the margin; each one is removed if the prediction
    stays the same. A unit that could not be removed may become removable once others are gone, so passes are
    repeated until one removes nothing.

    Parameters
    ----------
    sums
        The logits of every set, for B images.
    targets
        (B,) int64, the class predicted from all units.

    Returns
    -------
    Tensor
        (B, U) bool, True for the units in the set.
    """
    images = torch.arange(len(targets), device=targets.device)
    present = torch.ones_like(sums.index, dtype=torch.bool)
    everything = torch.arange(present.shape[1], device=targets.device).expand_as(present)
    logits = sums.logits(images, everything, present)
    order = sums.margins(targets, logits).argsort(dim=1, stable=True)
    # Rounding errors add up while one unit after the other is subtracted. If a head has no bias, the empty
    # set is a tie, which these errors would decide. Therefore the target carries a handicap until a pass
    # removes nothing.
    handicap = _HANDICAP * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    kept = torch.zeros_like(present)
    while True:
        stays = _one_pass(sums, images, order, present, targets[images], logits, handicap)
        unchanged = (stays == present).all(1)
        done = unchanged & (handicap == 0)
        kept[images[done]] = kept[images[done]].scatter(1, order[done], stays[done])
        if done.all():
            return kept
        # The units that stay move to the front, in the same order, so that the next pass is shorter. The
        # units that fill up a row behind them are not present.
        front = (~stays).int().argsort(dim=1, stable=True)[~done, : max(1, int(stays.sum(1).max()))]
        images, order, present = images[~done], order[~done].gather(1, front), stays[~done].gather(1, front)
        handicap = handicap.masked_fill(unchanged, 0)[~done]
        logits = sums.logits(images, order, present)


def _one_pass(
    sums: Sums,
    images: Tensor,
    order: Tensor,
    present: Tensor,
    targets: Tensor,
    logits: Tensor,
    handicap: Tensor,
) -> Tensor:
    """Try to remove each present unit once, in order.

    Parameters
    ----------
    sums
        The logits of every set.
    images
        (b,) int64, the images to search for.
    order
        (b, n) int64, their units in the order in which they are tried.
    present
        (b, n) bool, which of these units are present.
    targets
        (b,) int64.
    logits
        (b, C), those of the present units.
    handicap
        (b,), the margin by which the target's logit has to exceed all others.

    Returns
    -------
    Tensor
        (b, n) bool, the units that stay.
    """
    scales = (sums.scale[images[:, None], order] * present).T.contiguous()
    indices = sums.index[images[:, None], order].T.contiguous()
    stays = present.T.clone()
    column = targets[:, None]
    own = logits.gather(1, column)[:, 0] - handicap
    rivals = logits.scatter(1, column, -torch.inf)
    first = targets == 0  # argmax takes the first of equal logits, so class 0 wins every tie
    for stay, index, scale in zip(stays, indices, scales.unsqueeze(2), strict=True):
        # The product is rounded here as it is in the sum, and not fused into the subtraction, so that
        # nothing is left of a unit that is subtracted.
        contribution = sums.rows.index_select(0, index).mul_(scale)
        less = own - contribution.gather(1, column)[:, 0]
        strongest = (rivals - contribution).amax(1)
        goes = (less > strongest) | ((less == strongest) & first)
        stay.logical_and_(~goes)
        own = torch.where(goes, less, own)
        rivals.addcmul_(contribution, goes[:, None].to(rivals.dtype), value=-1)
    return stays.T
