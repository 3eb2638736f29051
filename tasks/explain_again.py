"""The explainer whose maps are being scored, once more: on altered inputs, other classes, other networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explainers.base import Batch, Need
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.registry import explainers
from storage.run import Run
from tasks.metrics.preparation import prepare
from tasks.perform import chunks
from tasks.saliency import explainer_of


class Again:
    """Implements :class:`tasks.metrics.base.Explain` for the rows with these ``targets`` and ``seeds``.

    The seeds are the explainer's: on unaltered inputs it gives the maps of the run once more.
    """

    def __init__(self, run: Run, name: str, classifier: BlackBox, targets: Tensor, seeds: Tensor) -> None:
        self.needs: frozenset[Need] = explainers.get(name).needs
        self._run, self._name, self._classifier = run, name, classifier
        self._targets, self._seeds = targets, seeds
        self._made: tuple[BlackBox, Any] | None = None

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        targets: Tensor | None = None,
        classifier: BlackBox | None = None,
    ) -> Tensor:
        """(n, \\*sites) prepared maps, NaN where the explainer fails."""
        wanted = self._targets[rows] if targets is None else targets
        asked = self._classifier if classifier is None else classifier
        # Metrics run in inference mode, whose tensors no explainer could take gradients through.
        with torch.inference_mode(False), torch.enable_grad():
            parts = [
                self._explain(
                    asked, inputs[part].clone(), wanted[part].clone(), self._seeds[rows[part]].clone()
                )
                for part in chunks(len(inputs), self._run.batch_images)
            ]
        return torch.cat(parts)

    def _explain(self, classifier: BlackBox, inputs: Tensor, targets: Tensor, seeds: Tensor) -> Tensor:
        activations = None
        if Need.ACTIVATIONS in self.needs and isinstance(classifier, Classifier):
            with torch.no_grad():
                activations = classifier.activations(inputs)
        batch = Batch(inputs, targets, seeds, activations, self._run.batch_forwards)
        maps = self._explainer(classifier).explain(batch).maps.detach()
        return prepare(maps, self._run.input_size, classifier.sites(inputs))[0]

    def _explainer(self, classifier: BlackBox) -> Any:
        """Of the classifier that was asked for last: its construction may cost passes."""
        if self._made is None or self._made[0] is not classifier:
            self._made = classifier, explainer_of(self._run, self._name, classifier)
        return self._made[1]
