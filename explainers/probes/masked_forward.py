"""Run the classifier on masked inputs, in full forward batches, for every explainer of black boxes.

An explainer numbers the masked inputs it needs, over all images of its batch at once. They are made on the
device, one chunk at a time, from something small (label maps, cells, seeds), passed through the network and
released, so that the masks, or the masked inputs, of a whole batch never exist together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.numerics.batching import in_chunks
from plugins.addresses import import_address

# From a classifier, logits (n, K) and targets (n,) int64 to numbers (n, ...).
Score = Callable[[BlackBox, Tensor, Tensor], Tensor]


def of_target(values: Tensor, targets: Tensor) -> Tensor:
    """(n,) value of each row's target, from values (n, K) and targets (n,) int64."""
    return values.gather(1, targets[:, None])[:, 0]


def target_logit(classifier: BlackBox, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """(n,) logit of each row's target."""
    return of_target(logits, targets)


def target_probability(classifier: BlackBox, logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) probability of each row's target, in [0, 1]."""
    return of_target(classifier.probability(logits), targets)


def target_log_odds(classifier: BlackBox, logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) log(p / (1 - p)) of each row's target.

    It is the target's logit minus the logsumexp of the others, or the logit itself where classes do not
    exclude each other.
    """
    # From the logits, since 1 - p would be rounded to zero where p is close to one.
    own = of_target(logits, targets)
    return own - logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1) if classifier.exclusive else own


def target_sigmoid(classifier: BlackBox, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """(n,) sigmoid of each row's target logit, whatever the classifier's probability is."""
    return of_target(logits, targets).sigmoid()


def predicted(classifier: BlackBox, logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) bool: whether each row's target is predicted.

    It is predicted if it has the highest logit. Where classes do not exclude each other, it is predicted if
    its own probability is more than 0.5, whatever that of the other classes is.
    """
    return logits.argmax(1) == targets if classifier.exclusive else of_target(logits, targets) > 0


def with_prediction(score: Score) -> Score:
    """Extend a score (n,) to (n, 2): the second number is 1 where the target is predicted, else 0."""

    def both(classifier: BlackBox, logits: Tensor, targets: Tensor) -> Tensor:
        scores = score(classifier, logits, targets)
        return torch.stack([scores, predicted(classifier, logits, targets).to(scores.dtype)], 1)

    return both


SCALARS: dict[str, Score] = {
    "probability": target_probability,
    "sigmoid": target_sigmoid,
    "logit": target_logit,
}


def scalar(name: str) -> Score:
    """The score (n,) that has this name or address.

    Parameters
    ----------
    name
        A key of :data:`SCALARS`, or an address ``package.module:function`` of a function from (n, K) logits
        and (n,) targets to (n,) numbers.

    Raises
    ------
    ValueError
        In one line, if there is no such function.
    """
    if name not in SCALARS and ":" not in name:
        raise ValueError(
            f"scalar: there is no {name!r}; choose {', '.join(SCALARS)} or package.module:function"
        )
    if name in SCALARS:
        return SCALARS[name]
    function = import_address(name, "scalar")
    return lambda _, logits, targets: function(logits, targets)


class MaskedForward:
    """Scores of masked inputs of one batch; it counts the forward passes of each image.

    Parameters
    ----------
    classifier
        The classifier to run.
    targets
        (B,) int64, the class to score for each image.
    forwards
        Forward passes per step; fewer when memory runs out, which changes no score.
    score
        From the classifier, (n, K) logits and (n,) targets to (n, ...) numbers.

    Attributes
    ----------
    passes
        (B,) int32, the forward passes so far, per image.
    """

    def __init__(self, classifier: BlackBox, targets: Tensor, forwards: int, score: Score) -> None:
        self.classifier, self.targets, self.forwards, self.score = classifier, targets, forwards, score
        self.passes = torch.zeros_like(targets, dtype=torch.int32)

    def scores(
        self, images: Tensor, compose: Callable[[Tensor], Tensor], same: Tensor | None = None
    ) -> Tensor:
        """Score M masked inputs.

        Parameters
        ----------
        images
            (M,) int64: the image that each masked input belongs to, as an index into the batch.
        compose
            Makes masked inputs (n, C, \\*sites) from their numbers (n,) in [0, M); n is at most ``forwards``.
        same
            (M,) int64: inputs of one image that have the same number here are equal, and are passed through
            the network once.

        Returns
        -------
        Tensor
            (M, ...) scores.
        """
        if same is not None:
            pairs, place = torch.stack([images, same], 1).unique(dim=0, return_inverse=True)
            # The first of equal inputs stands for all of them: the smallest number with the same pair.
            every = torch.arange(len(images), device=images.device)
            first = every.new_full((len(pairs),), len(images)).scatter_reduce(0, place, every, "amin")
            return self.scores(images[first], lambda rows: compose(first[rows]))[place]

        def evaluate(rows: slice) -> Tensor:
            numbers = torch.arange(rows.start, rows.stop, device=images.device)
            logits = self.classifier.logits(compose(numbers))
            return self.score(self.classifier, logits, self.targets[images[rows]])

        found = in_chunks(evaluate, len(images), self.forwards)
        self.passes += images.bincount(minlength=len(self.targets)).int()
        return found

    def variants(
        self, count: int, compose: Callable[[Tensor, Tensor], Tensor], same: Tensor | None = None
    ) -> Tensor:
        """Score ``count`` masked inputs of every image.

        Parameters
        ----------
        count
            Masked inputs per image.
        compose
            Makes masked inputs (n, C, \\*sites) from image and variant indices, (n,) int64 each.
        same
            (B, count) int64: inputs of one image that have the same number here are equal, and are passed
            through the network once.

        Returns
        -------
        Tensor
            (B, count, ...) scores.
        """
        B = len(self.targets)
        images = torch.arange(B, device=self.targets.device).repeat_interleave(count)
        found = self.scores(
            images,
            lambda rows: compose(rows // count, rows % count),
            None if same is None else same.flatten(),
        )
        return found.unflatten(0, (B, count))
