"""CAM and Ablation-CAM: what each channel adds to the target's logit, read off the head."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.probes.additivity import additive_head
from explainers.probes.masked_forward import target_logit
from explainers.registry import register


class _WeightedChannels:
    """Channel maps weighed by numbers that are read off the head without gradients."""

    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier
        head = additive_head(classifier)
        self.per_mean = None if head is None else head.per_mean

    def describe(self) -> Description:
        return Description(self.classifier.grid)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        assert batch.activations is not None
        features = self.classifier.spatial(batch.activations)
        weights = self.weights(batch, batch.activations, features)
        maps = torch.einsum("bd,bdhw->bhw", weights, features).float()
        return Explanation(maps, statuses_of(maps))

    def weights(self, batch: Batch, activations: Tensor, features: Tensor) -> Tensor:
        """(B, D) from activations (B, \\*activation_shape) and their channel maps (B, D, h, w)."""
        raise NotImplementedError


@register
class Cam(_WeightedChannels):
    """CAM (Zhou et al., CVPR 2016, eq. 2): channel maps weighed by the linear layer behind the pooling."""

    name: ClassVar[str] = "cam"
    title: ClassVar[str] = "CAM: channel maps weighed by the linear layer behind the pooling (CVPR 2016)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.POOLED})

    def weights(self, batch: Batch, activations: Tensor, features: Tensor) -> Tensor:  # noqa: ARG002
        assert self.per_mean is not None
        return self.per_mean.T[batch.targets]


@register
class AblationCam(_WeightedChannels):
    """Ablation-CAM (Desai and Ramaswamy, WACV 2020, eq. 3): a channel weighs (y - y_k) / |y|.

    y is the target's logit and y_k the logit with channel k set to zero. The paper divides by y, which it
    takes to be positive; where it is not, channels that support the class would change their sign (CHOICE).
    Of a transformer, a channel is zero on all patch tokens. Behind global average pooling and a linear layer,
    what leaves with a channel is its own term of the sum, and no pass is needed.
    """

    name: ClassVar[str] = "ablationcam"
    title: ClassVar[str] = "Ablation-CAM: channel maps weighed by the score's fall without them (WACV 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS})

    def weights(self, batch: Batch, activations: Tensor, features: Tensor) -> Tensor:
        B, D = features.shape[:2]
        logits = in_chunks(lambda rows: self._logits(batch, activations[rows], rows), B, batch.forwards)
        if self.per_mean is not None:
            drops = features.mean((2, 3)) * self.per_mean.T[batch.targets]
        else:
            every = torch.arange(B * D, device=features.device)

            def without(rows: slice) -> Tensor:
                image, channel = every[rows] // D, every[rows] % D
                keep = ~F.one_hot(channel, D).bool()
                return self._logits(batch, self.classifier.mask_channels(activations[image], keep), image)

            drops = logits[:, None] - in_chunks(without, B * D, batch.forwards).view(B, D)
        return drops / torch.where(logits == 0, 1, logits.abs())[:, None]

    def _logits(self, batch: Batch, activations: Tensor, images: Tensor | slice) -> Tensor:
        return target_logit(self.classifier.head(activations), batch.targets[images])
