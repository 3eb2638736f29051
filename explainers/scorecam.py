"""Score-CAM: channel maps weighted by the target's logit on the input that each one masks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.masking import rescaled
from explainers.probes.masked_forward import MaskedForward, target_logit
from explainers.registry import register


@register
class ScoreCam:
    """Score-CAM (Wang et al., CVPR Workshops 2020, algorithm 1): one forward pass per channel, no gradient.

    Each channel map is upsampled (bilinear) and min-maxed, and multiplies the input, whose pixels are in
    [0, 1]: what it hides is black. The score of a channel is the target's logit on the masked input minus
    the logit on black. The weights are the softmax of the scores over the channels. A channel that is
    constant shows nothing: its masked input is black, which is passed once for all such channels.

    For a CLIP-like model, the softmax is over logits, which are cosine similarities times the logit scale.

    Details: ``forward_passes``, the number of masked inputs that went through the network.
    """

    name: ClassVar[str] = "scorecam"
    title: ClassVar[str] = "Score-CAM: channel maps weighted by the score through them (CVPRW 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.ACTIVATIONS})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier

    def describe(self) -> Description:
        return Description(self.classifier.grid, {"forward_passes": Detail((), "int32")})

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        assert batch.activations is not None
        features = self.classifier.spatial(batch.activations)
        shown = features.amax((2, 3)) > features.amin((2, 3))
        # One more column, for black; it is passed only for images with a constant channel.
        passed = torch.cat([shown, ~shown.all(1, keepdim=True)], 1)
        image, channel = passed.nonzero().T

        # A map of zeros at the end stands for black.
        padded = F.pad(features, (0, 0, 0, 0, 0, 1))

        def masked_inputs(rows: Tensor) -> Tensor:
            maps = padded[image[rows], channel[rows]][:, None]
            masks = rescaled(F.interpolate(maps, self.classifier.input_size, mode="bilinear"))
            return batch.inputs[image[rows]] * masks

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_logit)
        found = masked.scores(image, masked_inputs)
        scores = found.new_zeros(passed.shape).index_put((image, channel), found)
        # The logit on black is not subtracted: a number common to all scores does not change the softmax.
        scores = torch.where(shown, scores[:, :-1], scores[:, -1:])
        maps = torch.einsum("bd,bdhw->bhw", scores.softmax(1), features).float()
        return Explanation(maps, statuses_of(maps), {"forward_passes": masked.passes})
