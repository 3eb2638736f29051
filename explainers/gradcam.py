"""CAMs from the gradient of the target's logit on the activations, through the head alone.

Each is a formula over channel maps A (D, h, w) and their gradients g (D, h, w). The ReLU that the papers put
at the end comes when a map is read. Of a transformer, the channels are those of the patch tokens laid on
their grid; prefix tokens are left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.probes.head_gradient import head_gradient, head_gradient_and_curvature
from explainers.registry import register

CANCELLED = 1e-5


class _GradientCam:
    """A map from the cached activations and one backward pass through the head."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.GRADIENTS})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier

    def describe(self) -> Description:
        return Description(self.classifier.grid)

    def explain(self, batch: Batch) -> Explanation:
        maps = in_chunks(lambda rows: self._chunk(batch, rows).float(), len(batch), batch.forwards)
        return Explanation(maps, statuses_of(maps))

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        gradient = head_gradient(self.classifier, batch, rows)
        return self.maps(self._features(batch, rows), self.classifier.spatial(gradient))

    def _features(self, batch: Batch, rows: slice) -> Tensor:
        assert batch.activations is not None
        return self.classifier.spatial(batch.activations[rows])

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        """(b, h, w) from channel maps and their gradients, (b, D, h, w) each."""
        raise NotImplementedError


@register
class GradCam(_GradientCam):
    """Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2): channels weigh their mean gradient."""

    name: ClassVar[str] = "gradcam"
    title: ClassVar[str] = "Grad-CAM: channel maps weighed by the target's mean gradient (ICCV 2017)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return _weighed(gradient.mean((2, 3)), features)


@register
class GradCamPlusPlus(_GradientCam):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, eq. 5, 10 and 19).

    A channel weighs the sum over positions of alpha * ReLU(g), with alpha = g^2 / (2 g^2 + g^3 sum(A)), here
    reduced to 1 / (2 + g sum(A)). The paper's score is the exponential of the logit, which scales each map
    by a positive number only and is left out.
    """

    name: ClassVar[str] = "gradcampp"
    title: ClassVar[str] = "Grad-CAM++: positive gradients weighed by second-order coefficients (WACV 2018)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        positive = gradient.relu()
        denominator = 2 + positive * features.sum((2, 3), keepdim=True)
        return _weighed(_ratio(positive, denominator).sum((2, 3)), features)


@register
class HiResCam(_GradientCam):
    """HiResCAM (Draelos and Carin, arXiv 2011.08891): gradient times activation, summed over channels.

    A position where the sum is below 1e-5 of the sum of magnitudes is rounding and counts as zero. In front
    of a layer norm every position is: scaling what gets normalised changes nothing, so that of a transformer
    that reads its class token the map at the last block's input is zero.
    """

    name: ClassVar[str] = "hirescam"
    title: ClassVar[str] = "HiResCAM: gradient times activation, position by position (arXiv 2011.08891)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        terms = gradient * features
        total = terms.sum(1)
        return total.masked_fill(total.abs() < CANCELLED * terms.abs().sum(1), 0)


@register
class XGradCam(_GradientCam):
    """XGrad-CAM (Fu et al., BMVC 2020, eq. 8): a channel weighs its activation-weighted mean gradient.

    A channel whose activations sum to exactly zero weighs nothing.
    """

    name: ClassVar[str] = "xgradcam"
    title: ClassVar[str] = "XGrad-CAM: channel maps weighed by the activation-weighted gradient (BMVC 2020)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        weighted = torch.einsum("bdhw,bdhw->bd", gradient, features)
        return _weighed(_ratio(weighted, features.sum((2, 3))), features)


@register
class LayerCam(_GradientCam):
    """LayerCAM (Jiang et al., IEEE TIP 2021, eq. 5 and 6): positive gradients times activations."""

    name: ClassVar[str] = "layercam"
    title: ClassVar[str] = "LayerCAM: positive gradients times activations, position by position (TIP 2021)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return torch.einsum("bdhw,bdhw->bhw", gradient.relu(), features)


@register
class ShapleyCam(_GradientCam):
    """ShapleyCAM (Cai, arXiv 2501.06261, 2025): a channel weighs the mean of g - H A / 2.

    H is the Hessian of the target's logit on all activations, prefix tokens included; the weights are a
    second-order estimate of the channels' Shapley values. The class score is the logit (CHOICE: the paper
    names others as well). Where the head is piecewise linear this is Grad-CAM.
    """

    name: ClassVar[str] = "shapleycam"
    title: ClassVar[str] = "ShapleyCAM: Grad-CAM with a second-order term of the head (arXiv 2501.06261)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.GRADIENTS, Need.CURVATURE})

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        gradient, curvature = head_gradient_and_curvature(self.classifier, batch, rows)
        weights = self.classifier.spatial(gradient - curvature / 2).mean((2, 3))
        return _weighed(weights, self._features(batch, rows))


def _weighed(weights: Tensor, features: Tensor) -> Tensor:
    """(b, h, w): channel maps (b, D, h, w) summed with weights (b, D)."""
    return torch.einsum("bd,bdhw->bhw", weights, features)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient, zero where the denominator is."""
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill(zero, 0)
