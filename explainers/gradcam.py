"""Grad-CAM, from cached activations through the head alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.batching import in_chunks
from explainers.classifier import Classifier
from explainers.registry import register


@register
class GradCam:
    """Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2), without the ReLU of eq. 2.

    Each channel map weighs the spatial mean of the target logit's gradient on it; the ReLU comes when a map
    is read. Of a transformer, the channels are those of the patch tokens laid on their grid; prefix tokens
    are left out.
    """

    name: ClassVar[str] = "gradcam"
    title: ClassVar[str] = "Grad-CAM: channel maps weighed by the target's mean gradient (ICCV 2017)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.GRADIENTS})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier

    def describe(self) -> Description:
        return Description(self.classifier.grid)

    def explain(self, batch: Batch) -> Explanation:
        maps = in_chunks(lambda rows: self._maps(batch, rows), len(batch), batch.forwards)
        return Explanation(maps, statuses_of(maps))

    # Autograd refuses tensors made in inference mode, so copies are taken outside of it.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def _maps(self, batch: Batch, rows: slice) -> Tensor:
        if batch.activations is None:
            raise ValueError("gradcam needs a batch with activations")
        activations = batch.activations[rows].clone().requires_grad_()
        targets = batch.targets[rows].clone()
        score = self.classifier.head(activations).gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, activations)
        weights = self.classifier.spatial(gradient).mean((2, 3))
        features = self.classifier.spatial(activations.detach())
        return torch.einsum("bd,bdhw->bhw", weights, features).float()
