"""DecomCAM: class-discriminative maps decomposed into orthogonal sub-saliency maps.

Yang et al., "DecomCAM", arXiv 2405.18882; Neurocomputing 610, 2024. The paper's abstract and figure, and the
authors' releases, determine the channels kept, the decomposition, the revealed images and the weighted sum.
Where the releases disagree or are silent, this is our CHOICE:

- Channels with equal gradient weights are ordered by their index.
- The sign of a component makes its entry of largest magnitude positive.
- Components beyond the numerical rank are zero and have the weight 0. They hold rounding errors only, which
  min-max scaling would turn into a mask.
- The weights are min-maxed gains, as in the figure. The parameter ``weights`` offers the notebook's rule too.
- The sub-saliency maps are summed on the layer's own grid. The authors sum their bicubic upsamplings; since
  that is linear, the two differ only in the upsampling when a map is read, which is the same for every
  explainer.
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
    """Parameters of DecomCAM. The defaults are the authors'; their packaged class keeps 500 channels."""

    channels: int = Field(
        100,
        ge=1,
        le=100_000,
        description="P, number of channels kept: those with the largest gradient weights",
    )
    components: int = Field(10, ge=1, le=10_000, description="q, number of orthogonal sub-saliency maps")
    weights: Literal["minmax", "notebook"] = Field(
        "minmax",
        description="how the gains d become weights: minmax scales them to [0, 1], as in the paper's figure; "
        "notebook divides by the largest and sets gains below 0.01 to 0, as in the authors' notebook",
    )


@register
class DecomCam:
    """DecomCAM (arXiv 2405.18882, 2024): orthogonal sub-saliency maps, weighted by what each one reveals.

    The class-discriminative maps of the P channels with the largest mean gradient are centred and decomposed
    by an SVD. The positive part of each of the first q components is a sub-saliency map. Its gain d is the
    score of the input revealed through it minus the score of the blurred input; the score is the target's
    logit, and for CLIP-like models the cosine similarity. The map is the weighted sum of the sub-saliency
    maps. It costs one forward and backward pass through the head, and q + 1 forward passes of the network.

    If all gains are equal, each weight is 1. With the notebook's rule, the map is zero if no gain reaches
    0.01.

    Details: ``components`` (q, h, w), signed; their ``singular_values`` (q,); the gains ``d`` (q,);
    ``weights`` (q,); ``channels`` (P,), the channels kept in the order of their weights; ``forward_passes``,
    q + 1 if no component is zero.
    """

    name: ClassVar[str] = "decomcam"
    title: ClassVar[str] = "DecomCAM: orthogonal sub-saliency maps, weighted by gains (arXiv 2405.18882)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.ACTIVATIONS, Need.GRADIENTS})
    Parameters: ClassVar[type[base.Parameters]] = DecomCamParameters

    def __init__(self, classifier: Classifier, parameters: DecomCamParameters) -> None:
        self.classifier, self.rule = classifier, parameters.weights
        h, w = classifier.grid
        self.channels = min(parameters.channels, classifier.channels)
        # The rank of centred columns is less than the number of positions.
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
        """Return the channels kept (B, P), and their maps alpha_k * A_k (B, P, h, w)."""
        assert batch.activations is not None

        def mean_gradient(rows: slice) -> Tensor:
            return self.classifier.spatial(head_gradient(self.classifier, batch, rows)).mean((2, 3))

        alpha = in_chunks(mean_gradient, len(batch), batch.forwards) / self.classifier.logit_scale
        # The sort is stable, so that equal weights leave the lowest index first on every device.
        alpha, order = alpha.sort(dim=1, descending=True, stable=True)
        alpha, channels = alpha[:, : self.channels], order[:, : self.channels]
        features = self.classifier.spatial(batch.activations)
        kept = features.take_along_dim(channels[..., None, None], 1)
        return channels, alpha[..., None, None] * kept

    def _gains(self, batch: Batch, components: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Score the inputs revealed through each component against the blurred inputs.

        Parameters
        ----------
        components
            (B, q, h, w), signed.
        there
            (B, q) bool, False for components that are zero. They reveal nothing and take no forward pass.

        Returns
        -------
        gains, passes
            (B, q) differences of the scores; (B,) int32 forward passes per image.
        """
        blurred = self.classifier.fill(batch.inputs, "blur")
        # One more component, of zeros, reveals nothing: it stands for the blurred input itself.
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
    """Decompose maps (B, P, h, w), once centred, into their first components.

    Returns
    -------
    components, singular_values
        (B, q, h, w) and (B, q). Components are orthogonal, as long as their singular values, and signed so
        that the entry of the largest magnitude is positive. Constant maps leave rounding errors only once
        they are centred; these count as zero.
    """
    columns = maps.flatten(2).mT
    size = torch.linalg.matrix_norm(columns)
    U, S = svd(columns - columns.mean(1, keepdim=True), size)
    U, S = U[..., :components], S[:, :components]
    sign = U.gather(1, U.abs().argmax(1, keepdim=True)).sign()
    return (U * sign * S[:, None]).mT.unflatten(2, maps.shape[2:]), S


def minmax_weights(d: Tensor, there: Tensor) -> Tensor:
    """Scale gains (B, q) to [0, 1] per image, as in the paper's figure; 1 each if all are equal.

    Components that are not ``there`` (B, q) are left out and have the weight 0.
    """
    low = d.masked_fill(~there, torch.inf).amin(1, keepdim=True)
    high = d.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    weights = torch.where(high == low, 1, (d - low) / torch.where(high == low, 1, high - low))
    return _unless_broken(weights, d, there)


def notebook_weights(d: Tensor, there: Tensor) -> Tensor:
    """Divide gains (B, q) by the largest one per image; 0 for gains below 0.01 (the authors' notebook)."""
    weights = torch.where(d < NOTEBOOK_THRESHOLD, 0, d / d.amax(1, keepdim=True))
    return _unless_broken(weights, d, there)


def _unless_broken(weights: Tensor, d: Tensor, there: Tensor) -> Tensor:
    """Set weights to 0 for components that are not there, and to NaN for images with a gain not finite."""
    finite = d.isfinite().all(1, keepdim=True)
    return weights.masked_fill(~there, 0).masked_fill(~finite, torch.nan)


WEIGHTS = {"minmax": minmax_weights, "notebook": notebook_weights}
