"""Gradients of the target's logit on the input's pixels, through Captum.

Attributions are taken on pixels in [0, 1], before the classifier normalises them. They are summed over the
colour channels, with their sign unless the method's paper says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from pydantic import Field
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.numerics.randomness import global_generators
from explainers.probes.masked_forward import target_logit
from explainers.registry import register

Gradient = Callable[..., tuple[Tensor, ...]]


class _PixelGradient:
    """A Captum method that takes ``passes`` forward and backward passes an image."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters
    passes = 1

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier

    def describe(self) -> Description:
        return Description(self.classifier.input_size, {"forward_passes": Detail((), "int32")})

    # Autograd refuses tensors made in inference mode, so copies are taken outside of it.
    @torch.inference_mode(False)
    def explain(self, batch: Batch) -> Explanation:
        with self.classifier.differentiating():
            maps = in_chunks(lambda rows: self._chunk(batch, rows), len(batch), self._images(batch.forwards))
        passes = torch.full_like(batch.targets, self.passes, dtype=torch.int32)
        return Explanation(maps, statuses_of(maps), {"forward_passes": passes})

    def _images(self, forwards: int) -> int:
        """How many images Captum is given at once."""
        return max(1, forwards // self.passes)

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        inputs, targets = batch.inputs[rows].clone(), batch.targets[rows].clone()
        return self.maps(inputs, targets, gradient_in_chunks(batch.forwards))

    def maps(self, inputs: Tensor, targets: Tensor, gradient: Gradient) -> Tensor:
        """(b, H, W) of inputs (b, 3, H, W), with ``gradient`` in place of Captum's own."""
        raise NotImplementedError


class _SampledGradient(_PixelGradient):
    """One that draws: for one image at a time and all samples at once, so that batches change no draw."""

    def _images(self, forwards: int) -> int:  # noqa: ARG002
        return 1

    def _chunk(self, batch: Batch, rows: slice) -> Tensor:
        with global_generators(int(batch.seeds[rows.start]), batch.inputs.device):
            return super()._chunk(batch, rows)


def gradient_in_chunks(forwards: int) -> Gradient:
    """What Captum calls for gradients: at most ``forwards`` inputs at once, fewer when memory runs out."""

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
            score = target_logit(forward_fn(leaf), targets[rows]).sum()
            return torch.autograd.grad(score, leaf)[0]

        return (in_chunks(chunk, len(points), forwards),)

    return gradient


class IntegratedGradientsParameters(base.Parameters):
    """Parameters of integrated gradients; the paper has 20 to 300 steps."""

    steps: int = Field(50, ge=1, description="points on the way from black to the input")


@register
class IntegratedGradientsOnPixels(_PixelGradient):
    """Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, eq. 1), from a black image.

    Black, the paper's baseline for images, is pixels of 0. The integral is taken by Gauss-Legendre
    quadrature, Captum's default, where the paper has a Riemann sum. With steps enough the map adds up to the
    target's logit on the input less that on black.

    Details: ``forward_passes``, forward and backward, one a step.
    """

    name: ClassVar[str] = "integrated_gradients"
    title: ClassVar[str] = "Integrated gradients: pixels times their mean gradient from black (ICML 2017)"
    Parameters: ClassVar[type[base.Parameters]] = IntegratedGradientsParameters

    def __init__(self, classifier: Classifier, parameters: IntegratedGradientsParameters) -> None:
        super().__init__(classifier, parameters)
        self.passes = parameters.steps

    def maps(self, inputs: Tensor, targets: Tensor, gradient: Gradient) -> Tensor:
        method = IntegratedGradients(self.classifier.logits)
        method.gradient_func = gradient
        found: Tensor = method.attribute(inputs, baselines=0, target=targets, n_steps=self.passes)
        return found.sum(1)


class SmoothGradParameters(base.Parameters):
    """Parameters of SmoothGrad; the paper finds 10 to 20 % noise best, and little gain beyond 50 samples."""

    samples: int = Field(50, ge=1, description="noisy inputs, each passed forward and backward")
    noise: float = Field(
        0.15, ge=0, description="standard deviation, as a share of the input's largest less smallest pixel"
    )


@register
class SmoothGrad(_SampledGradient):
    """SmoothGrad (Smilkov et al., 2017, arXiv 1706.03825): the mean gradient under Gaussian noise.

    The mean is that of signed gradients. The map is the sum of its magnitudes over the colour channels: the
    paper takes absolute values for natural images, and so does the authors' release.

    Noise comes from the device's own generator: on another kind of device it is another sample.

    Details: ``forward_passes``, forward and backward, one a sample.
    """

    name: ClassVar[str] = "smoothgrad"
    title: ClassVar[str] = "SmoothGrad: magnitude of the mean gradient under noise (arXiv 1706.03825)"
    Parameters: ClassVar[type[base.Parameters]] = SmoothGradParameters

    def __init__(self, classifier: Classifier, parameters: SmoothGradParameters) -> None:
        super().__init__(classifier, parameters)
        self.passes, self.noise = parameters.samples, parameters.noise

    def maps(self, inputs: Tensor, targets: Tensor, gradient: Gradient) -> Tensor:
        method = Saliency(self.classifier.logits)
        method.gradient_func = gradient
        found: Tensor = NoiseTunnel(method).attribute(
            inputs,
            nt_samples=self.passes,
            stdevs=self.noise * float(inputs.max() - inputs.min()),
            target=targets,
            abs=False,
        )
        return found.abs().sum(1)


@register
class InputXGradientOnPixels(_PixelGradient):
    """Input times gradient (Shrikumar et al., 2016, arXiv 1605.01713), the input being pixels in [0, 1].

    Details: ``forward_passes``, forward and backward: 1.
    """

    name: ClassVar[str] = "input_x_gradient"
    title: ClassVar[str] = "Input x gradient: pixels times the gradient on them (arXiv 1605.01713)"

    def maps(self, inputs: Tensor, targets: Tensor, gradient: Gradient) -> Tensor:
        method = InputXGradient(self.classifier.logits)
        method.gradient_func = gradient
        found: Tensor = method.attribute(inputs.requires_grad_(), target=targets)
        return found.detach().sum(1)


class GradientShapParameters(base.Parameters):
    """Parameters of gradient SHAP."""

    samples: int = Field(50, ge=1, description="points between a baseline and the input")


@register
class GradientShapOnPixels(_SampledGradient):
    """Gradient SHAP, SHAP values (Lundberg and Lee, NIPS 2017) by expected gradients.

    The mean, over random points on the way from a random baseline to the input, of the gradient there times
    the input's distance from that baseline. CHOICE: the baseline is black or white, so that neither dark nor
    bright pixels count for nothing; an explainer sees no other images, which could serve instead. No noise is
    added, as in the authors' package.

    Details: ``forward_passes``, forward and backward, one a sample.
    """

    name: ClassVar[str] = "gradient_shap"
    title: ClassVar[str] = "Gradient SHAP: expected gradients from black and white (NIPS 2017)"
    Parameters: ClassVar[type[base.Parameters]] = GradientShapParameters

    def __init__(self, classifier: Classifier, parameters: GradientShapParameters) -> None:
        super().__init__(classifier, parameters)
        self.passes = parameters.samples

    def maps(self, inputs: Tensor, targets: Tensor, gradient: Gradient) -> Tensor:
        method = GradientShap(self.classifier.logits)
        method.gradient_func = gradient
        black = torch.zeros_like(inputs)
        found: Tensor = method.attribute(
            inputs, torch.cat([black, 1 - black]), n_samples=self.passes, target=targets
        )
        return found.sum(1)
