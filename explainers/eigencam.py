"""Eigen-CAM: a map from the cached activations alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.numerics.decomposition import svd
from explainers.registry import register


@register
class EigenCam:
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020): activations on their first right singular vector.

    The map is the same for every class. As in the paper, the activations are not centred. CHOICE: an SVD
    leaves the sign open; the map has the sign whose sum is not negative, so that after a ReLU no position is
    negative.
    """

    name: ClassVar[str] = "eigencam"
    title: ClassVar[str] = "Eigen-CAM: activations projected on their first singular vector (IJCNN 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier

    def describe(self) -> Description:
        return Description(self.classifier.grid)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        maps = in_chunks(lambda rows: self._maps(batch, rows), len(batch), batch.forwards)
        return Explanation(maps, statuses_of(maps))

    def _maps(self, batch: Batch, rows: slice) -> Tensor:
        assert batch.activations is not None
        features = self.classifier.spatial(batch.activations[rows])
        U, S = svd(features.flatten(2).mT)
        projection = U[..., 0] * S[:, :1]
        projection = torch.where(projection.sum(1, keepdim=True) < 0, -projection, projection)
        return projection.unflatten(1, self.classifier.grid).float()
