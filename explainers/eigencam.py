"""Eigen-CAM: a map from the cached activations alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.numerics.decomposition import svd
from explainers.registry import register


class EigenCamParameters(base.Parameters):
    """Parameters of Eigen-CAM. The default is the paper's; ``centred = true`` is pytorch-grad-cam's way."""

    centred: bool = Field(
        False,
        description="whether each channel's mean over the positions is subtracted first, as in "
        "pytorch-grad-cam and not in the paper",
    )


@register
class EigenCam:
    """Eigen-CAM (Muhammad and Yeasin, IJCNN 2020): activations on their first right singular vector.

    The map is the same for every class. As in the paper, the activations are not centred. CHOICE: an SVD
    leaves the sign open; the map has the sign whose sum is not negative, so that after a ReLU no position is
    negative.

    pytorch-grad-cam centres each channel first, so that its map shows along which direction the positions
    differ most, and not which positions are strong. ``centred`` does the same. The values of such a map add
    up to zero, so that their sum gives no sign, and that library leaves the sign to its SVD. CHOICE: the
    value with the largest magnitude is positive (Seg-Eigen-CAM, Applied Sciences 2025, eq. 13).
    """

    name: ClassVar[str] = "eigencam"
    title: ClassVar[str] = "Eigen-CAM: activations projected on their first singular vector (IJCNN 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS})
    Parameters: ClassVar[type[base.Parameters]] = EigenCamParameters

    def __init__(self, classifier: Classifier, parameters: EigenCamParameters) -> None:
        self.classifier, self.centred = classifier, parameters.centred

    def describe(self) -> Description:
        return Description(self.classifier.grid)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        maps = in_chunks(lambda rows: self._maps(batch, rows), len(batch), batch.forwards)
        return Explanation(maps, statuses_of(maps))

    def _maps(self, batch: Batch, rows: slice) -> Tensor:
        assert batch.activations is not None
        columns = self.classifier.spatial(batch.activations[rows]).flatten(2).mT
        if self.centred:
            # Constant channels leave rounding errors of their own size when they are centred.
            size = torch.linalg.matrix_norm(columns)
            U, S = svd(columns - columns.mean(1, keepdim=True), size)
        else:
            U, S = svd(columns)
        projection = U[..., 0] * S[:, :1]
        if self.centred:
            turned = projection.amin(1, keepdim=True).abs() > projection.amax(1, keepdim=True)
        else:
            turned = projection.sum(1, keepdim=True) < 0
        return torch.where(turned, -projection, projection).unflatten(1, self.classifier.grid).float()
