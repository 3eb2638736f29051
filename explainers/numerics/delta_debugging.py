"""1-minimal sets of units: greedy passes where effects add up, delta debugging where they interact.

A set is *preserved* when the classifier still predicts the target with every unit outside the set at zero.
It is *1-minimal* when it is preserved and no set with one unit less is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Search = Generator[Tensor, Any, Tensor]

_HANDICAP = 100  # in units of rounding: a thousand subtractions err by some thirty


def ddmin(order: Tensor) -> Search:
    """The minimising delta debugging algorithm (Zeller and Hildebrandt, 2002, fig. 4) for one image.

    It presupposes that all units are preserved and that none of them are not. Where it leaves a choice, the
    first chunk that is preserved is kept, or else the last chunk that can go is removed.

    Parameters
    ----------
    order
        (U,) int64, every unit once; chunks are consecutive in this order. On the CPU.

    Yields
    ------
    Tensor
        (n, U) bool, candidate sets; the caller sends back (n,) bool, which of them are preserved.

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
        preserved = yield torch.cat([sets, _mask(kept, total) & ~sets])
        alone, without = preserved[:chunks], preserved[chunks:]
        if alone.any():
            kept, chunks = parts[int(alone.int().argmax())], 2
        elif without.any():
            last = int(without.nonzero()[-1])
            kept, chunks = torch.cat([*parts[:last], *parts[last + 1 :]]), max(chunks - 1, 2)
        elif chunks < len(kept):
            chunks = min(2 * chunks, len(kept))
        else:
            break
    return _mask(kept, total)


def _mask(units: Tensor, total: int) -> Tensor:
    return torch.zeros(total, dtype=torch.bool).index_fill_(0, units, True)


class _Remembering:
    """One image's search, answered from memory where a set was tested before.

    ``new`` are the sets to be tested next, by fingerprint; without any, ``found`` (U,) is the result.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self.known: dict[bytes, bool] = {}
        self.found = torch.empty(0)
        self._go_on(None)

    def learn(self, answers: Sequence[bool]) -> None:
        """Go on with the answers for ``new``, up to sets of which some were never tested."""
        self.known.update(zip(self.new, answers, strict=True))
        self._go_on(self._recall())

    def _go_on(self, reply: Tensor | None) -> None:
        try:
            while True:
                sets = self.search.send(reply)
                self.keys = [_fingerprint(row) for row in sets]
                self.new = {
                    key: row for key, row in zip(self.keys, sets, strict=True) if key not in self.known
                }
                if self.new:
                    return
                reply = self._recall()
        except StopIteration as stop:
            self.new, self.found = {}, stop.value

    def _recall(self) -> Tensor:
        return torch.tensor([self.known[key] for key in self.keys])


def _fingerprint(mask: Tensor) -> bytes:
    """Short, so that remembering thousands of sets stays small."""
    return hashlib.blake2b(mask.numpy().tobytes(), digest_size=16).digest()


def search_together(searches: Sequence[Search], test: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Advance the searches of many images in step, so that their candidates share batches.

    No set is tested twice for the same image.

    Parameters
    ----------
    searches
        One generator an image, as :func:`ddmin`.
    test
        From (M,) image numbers and (M, U) bool sets to (M,) bool, on the CPU.

    Returns
    -------
    Tensor
        (len(searches), U) bool, what each search returned.
    """
    every = [_Remembering(search) for search in searches]
    while asking := [image for image, search in enumerate(every) if search.new]:
        counts = [len(every[image].new) for image in asking]
        images = torch.tensor(asking).repeat_interleave(torch.tensor(counts))
        answers = test(images, torch.stack([row for image in asking for row in every[image].new.values()]))
        for image, answer in zip(asking, answers.split(counts), strict=True):
            every[image].learn(answer.tolist())
    return torch.stack([search.found for search in every])


@dataclass(frozen=True)
class Sums:
    """Logits that are sums over units: ``logits(b, S) = bias + sum over u in S of scale[b, u] * row[b, u]``.

    ``row[b, u]`` is ``rows[index[b, u]]``, so that images can share rows.

    Attributes
    ----------
    bias
        (C,) logits of the empty set.
    scale
        (B, U) float.
    rows
        (R, C) float.
    index
        (B, U) int64, into ``rows``.
    """

    bias: Tensor
    scale: Tensor
    rows: Tensor
    index: Tensor

    def logits(self, images: Tensor, units: Tensor, present: Tensor) -> Tensor:
        """(b, C) for b images, each with those of its (b, R) ``units`` that are ``present``."""
        scale = self.scale[images[:, None], units] * present
        index = self.index[images[:, None], units]
        return self.bias + F.embedding_bag(index, self.rows, mode="sum", per_sample_weights=scale)

    def margins(self, targets: Tensor, logits: Tensor) -> Tensor:
        """(B, U) what each unit adds to the target's logit over that of the strongest rival in ``logits``."""
        rivals = logits.scatter(1, targets[:, None], -torch.inf).argmax(1)
        return self.scale * (self.rows[self.index, targets[:, None]] - self.rows[self.index, rivals[:, None]])


def greedy_passes(sums: Sums, targets: Tensor) -> Tensor:
    """1-minimal sets where logits are sums over units.

    Units are tried in rising order of what they add to the margin; each is removed if the prediction stays.
    A unit that could not go may be free to go once others have, so passes repeat until one removes nothing.

    Parameters
    ----------
    sums
        The logits of every set, for B images.
    targets
        (B,) int64, the class predicted from all units.

    Returns
    -------
    Tensor
        (B, U) bool.
    """
    images = torch.arange(len(targets), device=targets.device)
    present = torch.ones_like(sums.index, dtype=torch.bool)
    everything = torch.arange(present.shape[1], device=targets.device).expand_as(present)
    logits = sums.logits(images, everything, present)
    order = sums.margins(targets, logits).argsort(dim=1, stable=True)
    # Subtracting unit after unit, rounding errors add up, and where a head has no bias the empty set is a tie
    # that they would decide. So the target carries a handicap until a pass removes nothing.
    handicap = _HANDICAP * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    kept = torch.zeros_like(present)
    while True:
        stays = _one_pass(sums, images, order, present, targets[images], logits, handicap)
        unchanged = (stays == present).all(1)
        done = unchanged & (handicap == 0)
        kept[images[done]] = kept[images[done]].scatter(1, order[done], stays[done])
        if done.all():
            return kept
        # The units still there move to the front, in the same order; whatever follows them is not present.
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
    """(b, R) bool, which of the present units stay after each has been tried once, in order.

    ``logits`` (b, C) are those of the present units, ``handicap`` (b,) what the target's logit has to be
    above all others by.
    """
    scales = (sums.scale[images[:, None], order] * present).T.contiguous()
    indices = sums.index[images[:, None], order].T.contiguous()
    stays = present.T.clone()
    column = targets[:, None]
    own = logits.gather(1, column)[:, 0] - handicap
    rivals = logits.scatter(1, column, -torch.inf)
    first = targets == 0  # argmax is the first of equals: this class wins every tie
    for stay, index, scale in zip(stays, indices, scales.unsqueeze(2), strict=True):
        # Rounded as in the sum, not fused into the subtraction, so that a unit taken away leaves no rest.
        contribution = sums.rows.index_select(0, index).mul_(scale)
        less = own - contribution.gather(1, column)[:, 0]
        strongest = (rivals - contribution).amax(1)
        goes = (less > strongest) | ((less == strongest) & first)
        stay.logical_and_(~goes)
        own = torch.where(goes, less, own)
        rivals.addcmul_(contribution, goes[:, None].to(rivals.dtype), value=-1)
    return stays.T
