"""Runs the explainer whose maps are scored again: on altered inputs, other classes or other networks."""

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
from tasks.run_parts import plugin_of
from tasks.shard_rows import chunks


class ExplainAgain:
    """Implements :class:`tasks.metrics.base.Explain` for one batch of a run.

    Parameters
    ----------
    name
        The explainer, as the run calls it.
    classifier
        The run's classifier.
    targets, seeds
        (B,) int64, the targets of the batch and its seeds in the saliency stage. With the same seeds,
        unaltered inputs get the maps of the run again.
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
        wanted = self._targets[rows] if targets is None else targets
        asked = self._classifier if classifier is None else classifier
        # Metrics run in inference mode, and autograd refuses tensors made there. Clones made outside it work.
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
        """The explainer of ``classifier``; the last one is kept, since building it may cost passes."""
        if self._made is None or self._made[0] is not classifier:
            self._made = classifier, plugin_of(explainers, self._run.explainers, self._name, classifier)
        return self._made[1]
