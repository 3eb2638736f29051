"""CAMs from the gradient of the target's logit with respect to the activations, through the head alone.

Each method is a formula over channel maps A (D, h, w) and their gradients g (D, h, w). The papers end with a
ReLU; here it is applied when a map is read. For a transformer, the channel maps are those of the patch
tokens, laid out on their grid; prefix tokens are left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.probes.head_gradient import head_gradient, head_gradient_and_curvature
from explainers.registry import register

_ROUNDING = 1e-6  # relative error of a product of activations and gradients in float32
_TRUSTED = 0.01  # of a map's largest value: how far rounding may move the map
CANCELLED = 1e-5  # a sum below this share of its terms' magnitudes is float32 rounding


class _GradientCam:
    """A method that needs the cached activations and one backward pass through the head."""

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
        """Return (b, h, w) maps from the channel maps and their gradients, both (b, D, h, w)."""
        raise NotImplementedError


@register
class GradCam(_GradientCam):
    """Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2): the weight of a channel is its mean gradient."""

    name: ClassVar[str] = "gradcam"
    title: ClassVar[str] = "Grad-CAM: channel maps weighted by the target's mean gradient (ICCV 2017)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return _weighed(gradient.mean((2, 3)), features)


class GradCamPlusPlusParameters(base.Parameters):
    """Parameters of Grad-CAM++. The default is the paper's; ``epsilon = 1e-6`` is pytorch-grad-cam's way."""

    epsilon: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="what is added to the denominator of alpha; 0 in the paper, 1e-6 in pytorch-grad-cam",
    )


@register
class GradCamPlusPlus(_GradientCam):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, eq. 5, 10 and 19).

    The weight of a channel is the sum over positions of alpha * ReLU(g), with
    alpha = g^2 / (2 g^2 + g^3 sum(A)), here reduced to 1 / (2 + g sum(A)). The paper's score is the
    exponential of the logit. The exponential is left out, since it only scales each map by a positive number.

    pytorch-grad-cam adds 1e-6 to the denominator, against a division by zero. The reduced form has no such
    division, so nothing is added here. Squared gradients are often smaller than 1e-6, and there that library
    takes alpha * ReLU(g) for nearly zero. The maps then also depend on the scale of the logits. ``epsilon``
    adds the same number.

    The paper's activations are not negative, so that no denominator is below 2. Where activations have both
    signs, as in transformers, a denominator may be nearly zero, and a rounding error may turn the map around.
    A map that relative errors of 1e-6 in the denominators' terms may change by more than 1 % is not a number
    that can be trusted: it is NaN, with the status ``not_finite``.
    """

    name: ClassVar[str] = "gradcampp"
    title: ClassVar[str] = "Grad-CAM++: positive gradients with second-order coefficients (WACV 2018)"
    Parameters: ClassVar[type[base.Parameters]] = GradCamPlusPlusParameters

    def __init__(self, classifier: Classifier, parameters: GradCamPlusPlusParameters) -> None:
        super().__init__(classifier, parameters)
        self.epsilon = parameters.epsilon

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        positive = gradient.relu()
        product = positive * features.sum((2, 3), keepdim=True)
        denominator = 2 + product
        if self.epsilon:
            # Where the gradient is 0, this is infinite, and the ratio 0 as it should be.
            denominator = denominator + self.epsilon / positive.square()
        shares = _ratio(positive, denominator)
        maps = _weighed(shares.sum((2, 3)), features)
        error = _ROUNDING * _ratio(shares * product, denominator).abs()
        errors = _weighed(error.sum((2, 3)), features.abs()).amax((1, 2))
        return maps.masked_fill((errors > _TRUSTED * maps.abs().amax((1, 2)))[:, None, None], torch.nan)


@register
class HiResCam(_GradientCam):
    """HiResCAM (Draelos and Carin, arXiv 2011.08891): gradient times activation, summed over channels.

    A sum whose magnitude is below 1e-5 of the sum of its terms' magnitudes is a rounding error and counts as
    zero. At the input of a layer norm this holds for every position, since scaling the input of a
    normalisation changes nothing. For this reason the map of a transformer that reads its class token is zero
    at the input of the last block.
    """

    name: ClassVar[str] = "hirescam"
    title: ClassVar[str] = "HiResCAM: gradient times activation, position by position (arXiv 2011.08891)"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        terms = gradient * features
        total = terms.sum(1)
        return total.masked_fill(total.abs() < CANCELLED * terms.abs().sum(1), 0)


@register
class XGradCam(_GradientCam):
    """XGrad-CAM (Fu et al., BMVC 2020, eq. 8): channels weighted by their activation-weighted mean gradient.

    A channel whose activations sum to exactly zero has the weight 0.
    """

    name: ClassVar[str] = "xgradcam"
    title: ClassVar[str] = "XGrad-CAM: channel maps weighted by the activation-weighted gradient (BMVC 2020)"

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
    """ShapleyCAM (Cai, arXiv 2501.06261, 2025): the weight of a channel is the mean of g - H A / 2.

    H is the Hessian of the target's logit with respect to all activations, prefix tokens included. The
    weights are a second-order estimate of the channels' Shapley values. CHOICE: the class score is the logit;
    the paper names others as well. If the head is piecewise linear, the method equals Grad-CAM.
    """

    name: ClassVar[str] = "shapleycam"
    title: ClassVar[str] = "ShapleyCAM: Grad-CAM with a second-order term of the head (arXiv 2501.06261)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.GRADIENTS, Need.CURVATURE})

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        gradient, curvature = head_gradient_and_curvature(self.classifier, batch, rows)
        weights = self.classifier.spatial(gradient - curvature / 2).mean((2, 3))
        return _weighed(weights, self._features(batch, rows))


def _weighed(weights: Tensor, features: Tensor) -> Tensor:
    """Sum channel maps (b, D, h, w) with weights (b, D) to (b, h, w)."""
    return torch.einsum("bd,bdhw->bhw", weights, features)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill(zero, 0)
