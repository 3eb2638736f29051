"""Weakly supervised localisation: how often a box around the map's high values matches the object's box.

MaxBoxAcc: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
MaxBoxAccV2: Choe et al., "Evaluation for Weakly Supervised Object Localization", TPAMI 2022.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.connected import connected_components
from tasks.metrics.preparation import unreadable
from tasks.metrics.references import center_map
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

Floats = NDArray[np.float64]

DELTA = 0.5  # intersection over union that MaxBoxAcc asks for
DELTAS = (0.3, 0.5, 0.7)  # those of MaxBoxAccV2


class MaxBoxAccuracyParameters(Parameters):
    """Parameters of maximal box accuracy."""

    thresholds: int = Field(
        default=100,
        ge=1,
        le=1000,
        description="n, number of thresholds: 0, 1 / n, ..., 1 - 1 / n of the map's maximum",
    )


@register
class MaxBoxAccuracy:
    """The share of images whose box is found at the best threshold, which is the same for all images.

    At threshold t, the boxes of a map are those around the connected components of its pixels above t. An
    image is a hit if one of these boxes has an intersection over union of at least delta with one of the
    image's boxes. MaxBoxAcc looks at the largest component alone, with a delta of 0.5; it is the highest
    share of hits over all t. MaxBoxAccV2 looks at all components; it is the mean, over the deltas 0.3, 0.5
    and 0.7, of the highest share over all t.

    The threshold is chosen on the same images that are scored, so both numbers are upper bounds, and they are
    the higher the fewer the images are. They are not means over images of each image's best threshold. An
    all-zero map has no box and misses at every threshold. A constant map has the box of the whole input at
    every threshold. With many components, one may fit by chance: where objects are small, V2 ranks noise
    above a centred Gaussian, so read it beside the control ``random``.

    CHOICES, compared with the authors' code:

    - Maps are compared as they are, not in 256 steps, and are upsampled bilinearly as for all metrics, not
      bicubically.
    - Pixels that share an edge or a corner are connected, as in the authors' contours. Boxes are those of
      components; contours also give boxes of the holes in components. The largest component is the one with
      the most pixels; the authors take the one with the largest area within its outline. If several are
      equally large, the best one counts.
    - Edges are continuous: the extent of a component is its last pixel minus its first pixel, plus 1. The
      authors' boxes end at the pixel after the last, and add 1, which is a pixel too wide and too high.
    - The image's boxes are cut to the input.
    """

    name: ClassVar[str] = "max_box_accuracy"
    title: ClassVar[str] = "MaxBoxAcc and MaxBoxAccV2: boxes found at the best threshold (Choe et al. 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.BOXES})
    Parameters: ClassVar[type[Parameters]] = MaxBoxAccuracyParameters

    def __init__(self, classifier: BlackBox, parameters: MaxBoxAccuracyParameters) -> None:  # noqa: ARG002
        self.thresholds = parameters.thresholds

    def columns(self) -> list[Column]:
        return [
            Column(f"max_box_acc{version}{of}", 0.0, 1.0, None if of else "higher", pooled="curve")
            for of in ("", "_center", "_all_ones")
            for version in ("", "_v2")
        ]

    @staticmethod
    def axes(column: str, parameters: MaxBoxAccuracyParameters) -> Axes:
        deltas = DELTAS if "_v2" in column else (DELTA,)
        return Axes(
            "threshold, share of the map's maximum",
            "share of images found",
            tuple(k / parameters.thresholds for k in range(parameters.thresholds)),
            tuple(f"IoU of at least {delta:g}" for delta in deltas),
        )

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Give curves of hits (1) and misses (0); every value is NaN, since the numbers are a dataset's.

        MaxBoxAcc has one point per threshold. V2 has the thresholds of the first delta, then those of the
        second and of the third. The columns ``center`` and ``all_ones`` report what the control
        ``center_gaussian`` and the box of the whole input would score; the latter has a single point per
        delta. Curves are NaN for images without a box inside the input. Components are found on the CPU.
        """
        size = (maps.shape[1], maps.shape[2])
        truth = _truth(batch.boxes, size)
        scored = (truth[..., 2] > truth[..., 0]).any(1) & ~unreadable(maps).cpu().numpy()
        truth = truth[scored]
        whole = np.array([[0.0, 0.0, size[1], size[0]]])
        overlaps = {
            "": self._of_maps(maps[torch.from_numpy(scored).to(maps.device)], truth),
            "_center": (_overlap(_center_boxes(size, self.thresholds), truth[:, None]),) * 2,
            "_all_ones": (_overlap(whole, truth[:, None]),) * 2,
        }
        curves = {}
        for of, (largest, best) in overlaps.items():
            curves[f"max_box_acc{of}"] = largest >= DELTA
            curves[f"max_box_acc_v2{of}"] = np.concatenate([best >= delta for delta in DELTAS], 1)
        nothing = torch.full((len(maps),), torch.nan, device=maps.device)
        return Scores(
            {column.name: nothing for column in self.columns()},
            {name: _spread(hits, scored).to(maps.device) for name, hits in curves.items()},
        )

    def _of_maps(self, maps: Tensor, truth: Floats) -> tuple[Floats, Floats]:
        """Return the highest overlap of the largest component, and of any component, at each threshold.

        ``truth`` (B, G, 4) holds the images' boxes. Both results are (B, thresholds).
        """
        largest, best = np.zeros((2, len(maps), self.thresholds))
        # The number of thresholds that each pixel is above.
        levels = torch.bucketize(maps, _cuts(self.thresholds, maps.device), out_int32=True).cpu().numpy()
        for k in range(self.thresholds):
            found = connected_components(levels > k)
            overlap = _overlap(found.boxes, truth[found.image])
            np.maximum.at(best[:, k], found.image, overlap)
            most = np.zeros(len(maps), np.int64)
            np.maximum.at(most, found.image, found.areas)
            top = found.areas == most[found.image]
            np.maximum.at(largest[:, k], found.image[top], overlap[top])
        return largest, best

    @staticmethod
    def of_mean_curve(column: str, curves: Tensor) -> Tensor:
        """Return the highest point of each mean curve; for V2, the mean of the highest point per delta."""
        if "_v2" in column:
            return curves.unflatten(1, (len(DELTAS), -1)).amax(2).mean(1)
        return curves.amax(1)


def _cuts(thresholds: int, device: torch.device) -> Tensor:
    return torch.arange(thresholds, device=device) / thresholds


@cache
def _center_boxes(size: tuple[int, int], thresholds: int) -> Floats:
    """Return the (thresholds, 4) boxes of the centred Gaussian.

    There is one box per threshold, since its pixels above a threshold always form one component.
    """
    cpu = torch.device("cpu")
    above = center_map(size, cpu) > _cuts(thresholds, cpu)[:, None, None]
    return connected_components(above.numpy()).boxes


def _truth(boxes: list[Tensor], size: tuple[int, int]) -> Floats:
    """Cut each image's boxes to the input, as (B, G, 4); boxes without an area, and padding, are zeros."""
    padded = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True).double().cpu()
    height, width = size
    cut = padded.clamp(min=0).minimum(torch.tensor([width, height] * 2))
    empty = (cut[..., 2:] <= cut[..., :2]).any(2, keepdim=True)
    found: Floats = cut.masked_fill(empty, 0).numpy()
    return found


def _overlap(boxes: Floats, truth: Floats) -> Floats:
    """Return the highest intersection over union of boxes (..., 4) with any of ``truth`` (..., G, 4)."""
    boxes = boxes[..., None, :]
    low, high = np.maximum(boxes[..., :2], truth[..., :2]), np.minimum(boxes[..., 2:], truth[..., 2:])
    shared = (high - low).clip(min=0).prod(-1)
    both = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (truth[..., 2:] - truth[..., :2]).prod(-1)
    highest: Floats = (shared / (both - shared)).max(-1, initial=0)
    return highest


def _spread(hits: NDArray[np.bool_], scored: NDArray[np.bool_]) -> Tensor:
    """Return (B, points) float32 curves: the hits of the images that are scored, NaN for the others."""
    curves = torch.full((len(scored), hits.shape[1]), torch.nan)
    curves[torch.from_numpy(scored)] = torch.from_numpy(hits).float()
    return curves
