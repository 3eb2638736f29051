"""Composed images through the network: log-odds and predictions of a class, with the passes counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.probes.masked_forward import MaskedForward, target_log_odds, with_prediction
from tasks.findings.seen import Rows, Seen

_SCORE = with_prediction(target_log_odds)


class Trials:
    """Passes of images, whole and composed, through one network.

    Parameters
    ----------
    classifier
        The network.
    seen
        Where the images come from.
    forwards
        Images per step; fewer when memory runs out, which changes no number.

    Attributes
    ----------
    passes
        The passes so far.
    """

    def __init__(self, classifier: BlackBox, seen: Seen, forwards: int) -> None:
        self.classifier, self.seen, self.forwards = classifier, seen, forwards
        self.passes = 0

    def whole(self, rows: Rows, target: int | Tensor) -> Tensor:
        """Score images (n,) as they are; ``target`` and the result are those of :meth:`swapped`."""
        return self._scores(torch.as_tensor(target).expand(len(rows)), lambda at: self.images(rows[at]))

    def swapped(
        self, under: Rows, over: Rows, regions: Callable[[Rows], Tensor], target: int | Tensor
    ) -> Tensor:
        """Score images with a region that shows the content that other images have there.

        Parameters
        ----------
        under, over
            (n,) rows of the images, and of those whose content is copied in.
        regions
            From numbers (k,) in [0, n) to regions (k, H, W) bool.
        target
            The class, or (n,) one for each image.

        Returns
        -------
        Tensor
            (n, 2): log-odds of the class in nats, and 1 where it is predicted, else 0.
        """
        targets = torch.as_tensor(target).expand(len(under))

        def compose(at: Rows) -> Tensor:
            return composed(self.images(under[at]), self.images(over[at]), regions(at))

        return self._scores(targets, compose)

    def images(self, rows: Rows) -> Tensor:
        return self.seen.images(rows).to(self.classifier.device)

    @torch.inference_mode()
    def _scores(self, targets: Tensor, compose: Callable[[Rows], Tensor]) -> Tensor:
        if not len(targets):
            return torch.zeros(0, 2, dtype=torch.float64)
        # Each composed image is an input of its own, with its own class.
        engine = MaskedForward(self.classifier, targets.to(self.classifier.device), self.forwards, _SCORE)
        numbers = torch.arange(len(targets), device=self.classifier.device)
        found = engine.scores(numbers, lambda at: compose(at.cpu().numpy()))
        self.passes += int(engine.passes.sum())
        return found.double().cpu()


def composed(under: Tensor, over: Tensor, regions: Tensor) -> Tensor:
    """Images (n, C, H, W) that show ``over`` in their regions (n, H, W) bool, and ``under`` elsewhere."""
    return torch.where(regions.to(under.device)[:, None], over, under)
