"""The classifier on masked inputs: what each black-box explainer asks for, in full forward batches.

An explainer names the masked inputs it needs by numbers, over all images of its batch at once. They are made
on the device a chunk at a time, from whatever is small (label maps, cells, seeds), passed, and forgotten, so
that neither masks nor masked inputs of a whole batch ever exist together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.numerics.batching import in_chunks
from explainers.registry import import_address

Score = Callable[[Tensor, Tensor], Tensor]


def target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) logit of each row's target."""
    return logits.gather(1, targets[:, None])[:, 0]


def target_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) softmax probability of each row's target."""
    return target_logit(logits.softmax(1), targets)


def target_log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) log(p / (1 - p)) of each row's target: its logit less the logsumexp of the others."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return target_logit(logits, targets) - others.logsumexp(1)


def target_sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) sigmoid of each row's target: its probability where classes do not exclude each other."""
    return target_logit(logits, targets).sigmoid()


def with_prediction(score: Score) -> Score:
    """(n, 2): ``score``, and 1 where the target is the prediction, else 0."""

    def both(logits: Tensor, targets: Tensor) -> Tensor:
        scores = score(logits, targets)
        return torch.stack([scores, (logits.argmax(1) == targets).to(scores.dtype)], 1)

    return both


SCALARS: dict[str, Score] = {
    "probability": target_probability,
    "sigmoid": target_sigmoid,
    "logit": target_logit,
}


def scalar(name: str) -> Score:
    """The function from (n, K) logits and (n,) targets to (n,) numbers, as :data:`SCALARS` or at an address.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in SCALARS and ":" not in name:
        raise ValueError(f"scalar: no {name!r}; choose {', '.join(SCALARS)} or package.module:function")
    found: Score = SCALARS[name] if name in SCALARS else import_address(name, "scalar")
    return found


class MaskedForward:
    """Scores of masked inputs of one batch, counting the forward passes of each image.

    Parameters
    ----------
    targets
        (B,) int64, the class of each image to score.
    forwards
        Forward passes per step; fewer when memory runs out, which changes no score.
    score
        From (n, C) logits and (n,) targets to (n, ...) numbers.

    Attributes
    ----------
    passes
        (B,) int32, forward passes so far.
    """

    def __init__(self, classifier: BlackBox, targets: Tensor, forwards: int, score: Score) -> None:
        self.classifier, self.targets, self.forwards, self.score = classifier, targets, forwards, score
        self.passes = torch.zeros_like(targets, dtype=torch.int32)

    def scores(
        self, images: Tensor, compose: Callable[[Tensor], Tensor], same: Tensor | None = None
    ) -> Tensor:
        """(M, ...) scores of M masked inputs.

        Parameters
        ----------
        images
            (M,) int64: the image each belongs to.
        compose
            From indices (n,) into the M to masked inputs (n, C, \\*sites); n is at most ``forwards``.
        same
            (M,) int64: inputs of one image with the same number here are the same, and are passed once.
        """
        if same is not None:
            pairs, place = torch.stack([images, same], 1).unique(dim=0, return_inverse=True)
            every = torch.arange(len(images), device=images.device)
            first = every.new_full((len(pairs),), len(images)).scatter_reduce(0, place, every, "amin")
            return self.scores(images[first], lambda rows: compose(first[rows]))[place]

        def evaluate(rows: slice) -> Tensor:
            numbers = torch.arange(rows.start, rows.stop, device=images.device)
            logits = self.classifier.logits(compose(numbers))
            return self.score(logits, self.targets[images[rows]])

        found = in_chunks(evaluate, len(images), self.forwards)
        self.passes += images.bincount(minlength=len(self.targets)).int()
        return found

    def variants(
        self, count: int, compose: Callable[[Tensor, Tensor], Tensor], same: Tensor | None = None
    ) -> Tensor:
        """(B, count, ...) scores of ``count`` masked inputs of every image.

        ``compose`` makes them from image and variant indices, (n,) int64 each. Where ``same`` (B, count) has
        the same number twice for an image, so are the inputs.
        """
        B = len(self.targets)
        images = torch.arange(B, device=self.targets.device).repeat_interleave(count)
        found = self.scores(
            images,
            lambda rows: compose(rows // count, rows % count),
            None if same is None else same.flatten(),
        )
        return found.unflatten(0, (B, count))
