"""CAM and Ablation-CAM: channel maps weighted by what each channel adds to the target's logit."""

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
from explainers.probes.masked_forward import of_target
from explainers.registry import register


class _WeightedChannels:
    """A sum of channel maps, weighted by numbers that the head gives without gradients."""

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
        """Return the (B, D) weights of the channels.

        Parameters
        ----------
        activations
            (B, \\*activation_shape), as the head takes them.
        features
            (B, D, h, w), the channel maps of the same activations.
        """
        raise NotImplementedError


@register
class Cam(_WeightedChannels):
    """CAM (Zhou et al., CVPR 2016, eq. 2): channel maps weighted by the linear layer after the pooling."""

    name: ClassVar[str] = "cam"
    title: ClassVar[str] = "CAM: channel maps weighted by the linear layer after the pooling (CVPR 2016)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.POOLED})

    def weights(self, batch: Batch, activations: Tensor, features: Tensor) -> Tensor:  # noqa: ARG002
        assert self.per_mean is not None
        return self.per_mean.T[batch.targets]


@register
class AblationCam(_WeightedChannels):
    """Ablation-CAM (Desai and Ramaswamy, WACV 2020, eq. 3): the weight of channel k is (y - y_k) / |y|.

    y is the target's logit, and y_k is the logit with channel k set to zero. CHOICE: the paper divides by y,
    which it assumes to be positive; this divides by |y|, since with a negative y the channels that support
    the class would change their sign. For a transformer, a channel is set to zero on all patch tokens. Where
    the head is global average pooling and one linear layer, y - y_k is the channel's own term of the sum, and
    no forward pass is needed.
    """

    name: ClassVar[str] = "ablationcam"
    title: ClassVar[str] = "Ablation-CAM: channel maps weighted by the score lost without them (WACV 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS})

    def weights(self, batch: Batch, activations: Tensor, features: Tensor) -> Tensor:
        B, D = features.shape[:2]
        logits = in_chunks(lambda rows: self._logits(batch, activations[rows], rows), B, batch.forwards)
        if self.per_mean is not None:
            drops = features.mean((2, 3)) * self.per_mean.T[batch.targets]
        else:
            # One row per pair of an image and a channel, so that chunks are full whatever B and D are.
            every = torch.arange(B * D, device=features.device)

            def without(rows: slice) -> Tensor:
                image, channel = every[rows] // D, every[rows] % D
                keep = ~F.one_hot(channel, D).bool()
                return self._logits(batch, self.classifier.mask_channels(activations[image], keep), image)

            drops = logits[:, None] - in_chunks(without, B * D, batch.forwards).view(B, D)
        return drops / torch.where(logits == 0, 1, logits.abs())[:, None]

    def _logits(self, batch: Batch, activations: Tensor, images: Tensor | slice) -> Tensor:
        return of_target(self.classifier.head(activations), batch.targets[images])
