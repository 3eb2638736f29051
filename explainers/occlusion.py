"""Occlusion: what the classifier loses when a window slides over the input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.probes.masked_forward import MaskedForward, target_probability
from explainers.registry import register

REFERENCE = 224  # pixels a side, for which lengths are given


class OcclusionParameters(base.PresetParameters):
    """The window and its steps. The paper names no size; the defaults are those of Captum's tutorials.

    Lengths are pixels of an input of 224x224 and scale with its height and width. ``preset = "fast"`` has a
    window of 32 in steps of 16, for 170 passes in place of 785: with MobileNetV2 on two photographs, its maps
    correlated 0.65 and 0.57 with the default's.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"window": 32, "stride": 16}

    window: int = Field(15, ge=1, le=REFERENCE, description="side of the window, in pixels at 224x224")
    stride: int = Field(8, ge=1, description="step from window to window, in pixels at 224x224")

    @model_validator(mode="after")
    def _covers(self) -> Self:
        if self.stride > self.window:
            raise ValueError(f"stride: steps of {self.stride} leave gaps between windows of {self.window}")
        return self


@register
class Occlusion:
    """Occlusion (Zeiler and Fergus, ECCV 2014, section 4.2), on the input's own pixels.

    A window of the mean colour that the classifier subtracts slides over the input. The map is, for each
    pixel, the target's probability on the whole input less that on the occluded one, averaged over the
    windows that cover the pixel (as in Captum; the paper shows the probability at the window's place). The
    first window lies in the corner; windows follow until all is covered, and the border cuts off the last.

    Details: ``forward_passes``, one a window and one for the whole input.
    """

    name: ClassVar[str] = "occlusion"
    title: ClassVar[str] = "Occlusion: the probability lost under a sliding window (ECCV 2014)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS})
    Parameters: ClassVar[type[base.Parameters]] = OcclusionParameters

    def __init__(self, classifier: Classifier, parameters: OcclusionParameters) -> None:
        self.classifier = classifier
        self.covers = [
            coverage(size, scaled(parameters.window, size), scaled(parameters.stride, size))
            for size in classifier.input_size
        ]

    def describe(self) -> Description:
        return Description(self.classifier.input_size, {"forward_passes": Detail((), "int32")})

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        down, across = (cover.to(batch.inputs.device) for cover in self.covers)
        windows = (len(down), len(across))
        # One more row of windows: its first occludes nothing.
        padded = F.pad(down, (0, 0, 0, 1))
        fill = self.classifier.fill(batch.inputs, "mean")

        def occluded(image: Tensor, window: Tensor) -> Tensor:
            rows, columns = padded[window // len(across)], across[window % len(across)]
            covered = rows[:, None, :, None] & columns[:, None, None]
            return torch.where(covered, fill, batch.inputs[image])

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_probability)
        scores = masked.variants(math.prod(windows) + 1, occluded).float()
        lost = (scores[:, -1:] - scores[:, :-1]).unflatten(1, windows)
        rows, columns = (cover.float() / cover.sum(0) for cover in (down, across))
        maps = rows.T @ lost @ columns
        return Explanation(maps, statuses_of(maps), {"forward_passes": masked.passes})


def scaled(length: int, size: int) -> int:
    """``length`` pixels of 224, in pixels of ``size``; at least one."""
    return max(1, round(length * size / REFERENCE))


def coverage(size: int, window: int, stride: int) -> Tensor:
    """(n, size) bool: the pixels each window covers along one axis; the border may cut off the last."""
    starts = stride * torch.arange(math.ceil((size - window) / stride) + 1)[:, None]
    pixels = torch.arange(size)
    return (pixels >= starts) & (pixels < starts + window)
