"""Remember what was found about sets of units, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Answers:
    """A function of images and sets of units, called once for each pair of an image and a set.

    Parameters
    ----------
    ask
        From (M,) int64 image numbers and (M, U) bool sets to answers (M, ...). A row must not depend on the
        others.
    """

    def __init__(self, ask: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._ask = ask
        self._known: dict[tuple[int, bytes], Any] = {}
        self._like = torch.empty(0)

    def __call__(self, images: Tensor, keep: Tensor) -> Tensor:
        """Return the answers (M, ...) for image numbers (M,) and sets (M, U), which may occur repeatedly."""
        keys = _keys(images, keep)
        new: dict[tuple[int, bytes], int] = {}
        for row, key in enumerate(keys):
            if key not in self._known:
                new.setdefault(key, row)
        if new:
            rows = torch.tensor(list(new.values()), device=images.device)
            answers = self._ask(images[rows], keep[rows])
            self._like = answers[:0]
            self._known.update(zip(new, answers.tolist(), strict=True))
        return self._like.new_tensor([self._known[key] for key in keys])

    def recall(self, image: int, keep: Tensor) -> Tensor | None:
        """Return the answers for sets (M, U) of one image; None if one of them is not known yet."""
        keys = _keys(torch.full((len(keep),), image), keep)
        if any(key not in self._known for key in keys):
            return None
        return self._like.new_tensor([self._known[key] for key in keys])


def _keys(images: Tensor, keep: Tensor) -> list[tuple[int, bytes]]:
    """A key for every pair of an image and a set; keys are short, so that thousands take little memory."""
    rows = (row.tobytes() for row in keep.cpu().numpy())
    return [
        (image, hashlib.blake2b(row, digest_size=16).digest())
        for image, row in zip(images.tolist(), rows, strict=True)
    ]
