"""Runs the explainer whose maps are being scored again: on altered inputs, other classes, other networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explainers.base import Batch, Explainer, Explanation, Need
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.numerics.batching import chunks
from tasks.metrics.preparation import prepare


class ExplainAgain:
    """Implements :class:`tasks.metrics.base.Explain` for maps with known targets and seeds.

    The seeds are those of the first explanation, so that unaltered inputs get the same maps again.

    Parameters
    ----------
    explainer, classifier
        Those of the first explanation.
    make
        Gives the explainer for another classifier, with the same parameters.
    targets, seeds
        (B,) int64, of the maps that are scored.
    images, forwards
        Inputs per step, and forward passes per perturbation step.
    """

    def __init__(
        self,
        explainer: Explainer,
        classifier: BlackBox,
        make: Callable[[BlackBox], Explainer],
        targets: Tensor,
        seeds: Tensor,
        images: int,
        forwards: int,
    ) -> None:
        self.needs = explainer.needs
        self._make, self._classifier, self._targets, self._seeds = make, classifier, targets, seeds
        self._images, self._forwards = images, forwards
        self._made = classifier, explainer

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        targets: Tensor | None = None,
        classifier: BlackBox | None = None,
    ) -> Tensor:
        wanted = self._targets[rows] if targets is None else targets
        asked = self._classifier if classifier is None else classifier
        # Metrics run in inference mode, whose tensors take no gradients: hence the copies.
        with torch.inference_mode(False), torch.enable_grad():
            parts = [
                self._maps(asked, inputs[part].clone(), wanted[part].clone(), self._seeds[rows[part]].clone())
                for part in chunks(len(inputs), self._images)
            ]
        return torch.cat(parts)

    def _maps(self, classifier: BlackBox, inputs: Tensor, targets: Tensor, seeds: Tensor) -> Tensor:
        """(b, \\*sites) prepared maps."""
        if self._made[0] is not classifier:  # making one may cost passes
            self._made = classifier, self._make(classifier)
        _, explanation = explained(self._made[1], classifier, inputs, targets, seeds, self._forwards)
        maps = explanation.maps.detach()
        return prepare(maps, classifier.input_shape[1:], classifier.sites(inputs))[0]


def explained(
    explainer: Explainer,
    classifier: BlackBox,
    inputs: Tensor,
    targets: Tensor | None,
    seeds: Tensor,
    forwards: int,
) -> tuple[Tensor, Explanation]:
    """The classes (b,) that were explained, the predicted ones where none are given, and the explanation.

    Activations are computed here, if the explainer reads them.
    """
    features = logits = None
    with torch.no_grad():
        if Need.ACTIVATIONS in explainer.needs and isinstance(classifier, Classifier):
            features = classifier.activations(inputs)
            logits = classifier.head(features) if targets is None else None
        if targets is None:
            targets = (classifier.logits(inputs) if logits is None else logits).argmax(1)
    return targets, explainer.explain(Batch(inputs, targets, seeds, features, forwards))
