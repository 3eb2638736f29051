"""Methods that use gradients of the target's logit with respect to the input's pixels, through Captum.

Attributions refer to pixels in [0, 1], before the classifier normalises them. They are summed over the
colour channels, with their sign unless the method's paper says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, Saliency
from pydantic import Field
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.numerics.randomness import global_generators
from explainers.probes.masked_forward import of_target
from explainers.registry import register

Gradient = Callable[..., tuple[Tensor, ...]]


class _PixelGradient:
    """A method of Captum's that takes ``passes`` forward and backward passes per image."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters
    captum: ClassVar[Any]  # the class of Captum's method
    passes_key: ClassVar[str | None] = None  # the parameter that says how many passes; None: one

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:
        self.classifier, self.parameters = classifier, parameters
        self.passes: int = 1 if self.passes_key is None else getattr(parameters, self.passes_key)

    def describe(self) -> Description:
        return Description(self.classifier.input_size, {"forward_passes": Detail((), "int32")})

    # Autograd refuses tensors that were made in inference mode, so copies are made outside it.
    @torch.inference_mode(False)
    def explain(self, batch: Batch) -> Explanation:
        with self.classifier.differentiating():
            maps = in_chunks(lambda rows: self._chunk(batch, rows), len(batch), self._images(batch.forwards))
        passes = torch.full_like(batch.targets, self.passes, dtype=torch.int32)
        return Explanation(maps, statuses_of(maps), {"forward_passes": passes})

    def _images(self, forwards: int) -> int:
        """Return the number of images that are passed to Captum at once."""
        return max(1, forwards // self.passes)

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        method = self.captum(self.classifier.logits)
        method.gradient_func = gradient_in_chunks(batch.forwards)
        return self.maps(method, batch.inputs[rows].clone(), batch.targets[rows].clone())

    def maps(self, method: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (b, H, W) maps of inputs (b, 3, H, W) and targets (b,) by Captum's method."""
        raise NotImplementedError


class _SampledGradient(_PixelGradient):
    """A method that draws random numbers.

    It draws for one image at a time, all samples at once, so that the batch size changes no draw.
    """

    def _images(self, forwards: int) -> int:  # noqa: ARG002
        return 1

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        with global_generators(int(batch.seeds[rows.start]), batch.inputs.device):
            return super()._chunk(batch, rows)


def gradient_in_chunks(forwards: int) -> Gradient:
    """Return the function that Captum calls for gradients.

    It passes at most ``forwards`` inputs at once, and fewer if the device runs out of memory.
    """

    def gradient(
        forward_fn: Callable[[Tensor], Tensor],
        inputs: tuple[Tensor],
        target_ind: Tensor,
        additional_forward_args: object = None,  # noqa: ARG001
    ) -> tuple[Tensor, ...]:
        (points,) = inputs
        targets = target_ind.expand(len(points))  # Captum repeats the targets of several images only

        @torch.enable_grad()
        def chunk(rows: slice) -> Tensor:
            leaf = points[rows].detach().requires_grad_()
            score = of_target(forward_fn(leaf), targets[rows]).sum()
            return torch.autograd.grad(score, leaf)[0]

        return (in_chunks(chunk, len(points), forwards),)

    return gradient


class IntegratedGradientsParameters(base.Parameters):
    """Parameters of integrated gradients."""

    steps: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="number of points between black and the input; the paper takes 20 to 300",
    )


@register
class IntegratedGradientsOnPixels(_PixelGradient):
    """Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, eq. 1), from a black image.

    In the black image, which is the paper's baseline for images, all pixels are 0. The integral is computed
    by Gauss-Legendre quadrature, Captum's default; the paper uses a Riemann sum. With enough steps, the
    values of the map add up to the target's logit on the input minus the logit on the black image.

    Details: ``forward_passes``, forward and backward, one per step.
    """

    name: ClassVar[str] = "integrated_gradients"
    title: ClassVar[str] = "Integrated gradients: pixels times their mean gradient from black (ICML 2017)"
    Parameters: ClassVar[type[base.Parameters]] = IntegratedGradientsParameters
    captum: ClassVar[Any] = IntegratedGradients
    passes_key: ClassVar[str | None] = "steps"

    def maps(self, method: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(inputs, baselines=0, target=targets, n_steps=self.passes)
        return found.sum(1)


class SmoothGradParameters(base.Parameters):
    """Parameters of SmoothGrad."""

    samples: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="number of noisy inputs, each passed forward and backward; the paper finds little gain "
        "beyond 50",
    )
    noise: float = Field(
        0.15,
        ge=0,
        le=1000,
        description="standard deviation of the noise, as a share of the range of the input's pixels (largest "
        "minus smallest); the paper finds 0.1 to 0.2 best",
    )


@register
class SmoothGrad(_SampledGradient):
    """SmoothGrad (Smilkov et al., 2017, arXiv 1706.03825): the mean gradient under Gaussian noise.

    The gradients are averaged with their signs. The map is the magnitude of this mean, summed over the colour
    channels: the paper takes absolute values for natural images, and so does the authors' release.

    The noise is drawn on the host, so that it is the same on every kind of device.

    Details: ``forward_passes``, forward and backward, one per sample.
    """

    name: ClassVar[str] = "smoothgrad"
    title: ClassVar[str] = "SmoothGrad: magnitude of the mean gradient under noise (arXiv 1706.03825)"
    Parameters: ClassVar[type[base.Parameters]] = SmoothGradParameters
    captum: ClassVar[Any] = Saliency
    passes_key: ClassVar[str | None] = "samples"
    parameters: SmoothGradParameters

    def maps(self, method: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        deviation = self.parameters.noise * float(inputs.max() - inputs.min())
        noise = deviation * torch.randn(self.passes, *inputs.shape[1:])
        noisy = (inputs + noise.to(inputs.device)).requires_grad_()
        found: Tensor = method.attribute(noisy, target=targets.expand(self.passes), abs=False)
        return found.mean(0, keepdim=True).abs().sum(1)


@register
class InputXGradientOnPixels(_PixelGradient):
    """Input times gradient (Shrikumar et al., 2016, arXiv 1605.01713), for pixels in [0, 1].

    Details: ``forward_passes``, forward and backward, which is 1.
    """

    name: ClassVar[str] = "input_x_gradient"
    title: ClassVar[str] = "Input x gradient: pixels times their gradient (arXiv 1605.01713)"
    captum: ClassVar[Any] = InputXGradient

    def maps(self, method: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(inputs.requires_grad_(), target=targets)
        return found.detach().sum(1)


class GradientShapParameters(base.Parameters):
    """Parameters of gradient SHAP."""

    samples: int = Field(
        50, ge=1, le=1_000_000, description="number of random points between a baseline and the input"
    )


@register
class GradientShapOnPixels(_SampledGradient):
    """Gradient SHAP: SHAP values (Lundberg and Lee, NIPS 2017), estimated by expected gradients.

    Random points are drawn between a random baseline and the input. The map is the mean, over these points,
    of the gradient at the point times the difference between the input and the baseline. CHOICE: the baseline
    is a black or a white image, so that neither dark nor bright pixels are ignored. Other images could serve
    as baselines, but an explainer sees none. As in the authors' package, no noise is added.

    Details: ``forward_passes``, forward and backward, one per sample.
    """

    name: ClassVar[str] = "gradient_shap"
    title: ClassVar[str] = "Gradient SHAP: expected gradients from black and white (NIPS 2017)"
    Parameters: ClassVar[type[base.Parameters]] = GradientShapParameters
    captum: ClassVar[Any] = GradientShap
    passes_key: ClassVar[str | None] = "samples"

    def maps(self, method: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        black = torch.zeros_like(inputs)
        found: Tensor = method.attribute(
            inputs, torch.cat([black, 1 - black]), n_samples=self.passes, target=targets
        )
        return found.sum(1)
