"""DecomCAM: class-discriminative maps decomposed into orthogonal sub-saliency maps.

Yang et al., "DecomCAM", arXiv 2405.18882; Neurocomputing 610, 2024. The paper's abstract and figure, and what
the authors' releases do, state the channels kept, the decomposition, the revealed images and the weighted
sum. Where the releases disagree or are silent, this is our CHOICE:

- Of channels with equal gradient weights the lowest index comes first.
- A component's sign is the one that makes its entry of largest magnitude positive.
- Components beyond the numerical rank are zero and weigh nothing: rounding, min-maxed, would be a mask.
- The weights are min-maxed gains, as in the figure; the notebook's rule can be had instead.
- The sum of the sub-saliency maps is taken on the layer's own grid. They are its bicubic upsampling, which is
  linear, so that only the upsampling on reading is another one: the same for every explainer.
- The blur mirrors the input at its borders.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.numerics.decomposition import svd
from explainers.numerics.masking import rescaled
from explainers.probes.head_gradient import head_gradient
from explainers.probes.masked_forward import MaskedForward, target_logit
from explainers.registry import register

NOTEBOOK_THRESHOLD = 0.01


class DecomCamParameters(base.Parameters):
    """Parameters of DecomCAM; the defaults are the authors' (their packaged class keeps 500 channels)."""

    channels: int = Field(100, ge=1, description="P, channels kept, those of the largest gradient weights")
    components: int = Field(10, ge=1, description="q, orthogonal sub-saliency maps")
    weights: Literal["minmax", "notebook"] = Field(
        "minmax", description="of the gains d: min-max (the paper's figure), or d / max d, 0 below 0.01"
    )


@register
class DecomCam:
    """DecomCAM (arXiv 2405.18882, 2024): orthogonal sub-saliency maps, weighed by what each reveals.

    The class-discriminative maps of the P channels with the largest mean gradient, centred, go through an
    SVD; the positive part of each of the q first components is a sub-saliency map. Its gain d is the score of
    the input revealed through it over the blurred input's; the score is the target's logit, for CLIP-like
    models the cosine similarity. The map is the weighted sum of the sub-saliency maps. One pass through the
    head and back, and q + 1 forward passes.

    Details: ``components`` (q, h, w), signed; their ``singular_values`` (q,); ``d`` (q,); ``weights`` (q,);
    ``channels`` (P,), the channels kept in the order of their weights; ``forward_passes``, q + 1 where
    no component is zero. Gains that are all equal weigh 1 each; with the notebook's rule and no gain of
    0.01 the map is zero.
    """

    name: ClassVar[str] = "decomcam"
    title: ClassVar[str] = "DecomCAM: orthogonal sub-saliency maps and what they reveal (arXiv 2405.18882)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.ACTIVATIONS, Need.GRADIENTS})
    Parameters: ClassVar[type[base.Parameters]] = DecomCamParameters

    def __init__(self, classifier: Classifier, parameters: DecomCamParameters) -> None:
        self.classifier, self.rule = classifier, parameters.weights
        h, w = classifier.grid
        self.channels = min(parameters.channels, classifier.channels)
        # Centred columns have a rank below the number of positions.
        self.components = min(parameters.components, self.channels, max(1, h * w - 1))

    def describe(self) -> Description:
        q, grid = self.components, self.classifier.grid
        details = {
            "components": Detail((q, *grid), "float32"),
            "singular_values": Detail((q,), "float32"),
            "d": Detail((q,), "float32"),
            "weights": Detail((q,), "float32"),
            "channels": Detail((self.channels,), "int32"),
            "forward_passes": Detail((), "int32"),
        }
        return Description(grid, details)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        channels, maps = self._class_discriminative(batch)
        components, singular_values = decompose(maps, self.components)
        there = singular_values != 0
        d, passes = self._gains(batch, components, there)
        weights = WEIGHTS[self.rule](d, there)
        saliency = torch.einsum("bq,bqhw->bhw", weights, components.relu()).float()
        details = {
            "components": components.float(),
            "singular_values": singular_values.float(),
            "d": d.float(),
            "weights": weights.float(),
            "channels": channels.int(),
            "forward_passes": passes,
        }
        return Explanation(saliency, statuses_of(saliency), details)

    def _class_discriminative(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The channels kept (B, P), and alpha_k * A_k of them (B, P, h, w)."""
        assert batch.activations is not None

        def mean_gradient(rows: slice) -> Tensor:
            return self.classifier.spatial(head_gradient(self.classifier, batch, rows)).mean((2, 3))

        alpha = in_chunks(mean_gradient, len(batch), batch.forwards) / self.classifier.logit_scale
        alpha, order = alpha.sort(dim=1, descending=True, stable=True)
        alpha, channels = alpha[:, : self.channels], order[:, : self.channels]
        features = self.classifier.spatial(batch.activations)
        kept = features.take_along_dim(channels[..., None, None], 1)
        return channels, alpha[..., None, None] * kept

    def _gains(self, batch: Batch, components: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(B, q) scores of inputs revealed through components, less the blurred inputs'; and (B,) passes.

        Components that are not ``there`` (B, q) reveal nothing and are not passed.
        """
        blurred = self.classifier.fill(batch.inputs, "blur")
        # One more component, of zero, reveals nothing: the blurred input itself.
        positive = F.pad(components.relu(), (0, 0, 0, 0, 0, 1)).float()

        def revealed(image: Tensor, component: Tensor) -> Tensor:
            maps = positive[image, component][:, None]
            mask = rescaled(F.interpolate(maps, self.classifier.input_size, mode="bicubic"))
            return torch.maximum(batch.inputs[image] * mask, blurred[image] * (1 - mask))

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_logit)
        variant = torch.arange(self.components + 1, device=there.device)
        same = torch.where(F.pad(there, (0, 1)), variant, self.components)
        scores = masked.variants(self.components + 1, revealed, same)
        return (scores[:, :-1] - scores[:, -1:]) / self.classifier.logit_scale, masked.passes


def decompose(maps: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The first components (B, q, h, w) and singular values (B, q) of centred maps (B, P, h, w).

    Components are orthogonal, of the length of their singular values, and signed so that the entry of the
    largest magnitude is positive. What centring leaves of maps that are constant is rounding, and zero.
    """
    columns = maps.flatten(2).mT
    size = torch.linalg.matrix_norm(columns)
    U, S = svd(columns - columns.mean(1, keepdim=True), size)
    U, S = U[..., :components], S[:, :components]
    sign = U.gather(1, U.abs().argmax(1, keepdim=True)).sign()
    return (U * sign * S[:, None]).mT.unflatten(2, maps.shape[2:]), S


def minmax_weights(d: Tensor, there: Tensor) -> Tensor:
    """(B, q) gains shifted and scaled to [0, 1] (the paper's figure); 1 each where all are equal.

    Components that are not ``there`` (B, q) have no part in it and weigh 0.
    """
    low = d.masked_fill(~there, torch.inf).amin(1, keepdim=True)
    high = d.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    weights = torch.where(high == low, 1, (d - low) / torch.where(high == low, 1, high - low))
    return _unless_broken(weights, d, there)


def notebook_weights(d: Tensor, there: Tensor) -> Tensor:
    """(B, q) gains over the largest, 0 for gains below 0.01 (the authors' notebook)."""
    weights = torch.where(d < NOTEBOOK_THRESHOLD, 0, d / d.amax(1, keepdim=True))
    return _unless_broken(weights, d, there)


def _unless_broken(weights: Tensor, d: Tensor, there: Tensor) -> Tensor:
    """Zero for components that are not there, NaN for all of an image if one of its gains is not finite."""
    finite = d.isfinite().all(1, keepdim=True)
    return weights.masked_fill(~there, 0).masked_fill(~finite, torch.nan)


WEIGHTS = {"minmax": minmax_weights, "notebook": notebook_weights}
