"""How well a map's values separate the object's pixels from the others, without a threshold.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020: PxAP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Parameters
from tasks.metrics.base import Axes, Column, MetricBatch, Need, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.references import center_map
from tasks.metrics.registry import register

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class PixelPrecisionParameters(Parameters):
    """Parameters of pixel precision."""

    bins: int = Field(
        default=100,
        ge=2,
        le=1000,
        description="number of bins of the histograms of map values, from which pxap, the precision over the "
        "whole dataset, is computed; the authors' program has 100 by default",
    )


@register
class PixelPrecision:
    """Average precision of the pixels: the area under precision against recall as the threshold falls.

    ``pxap`` takes all pixels of the dataset together, at common thresholds, so large objects and maps with
    large values have more weight. ``pixel_precision`` takes one image, at every value of its map. Both are
    sums, over thresholds, of precision times the recall gained. All pixels with the same value enter at once,
    so a constant map, an all-zero one too, scores the object's share of the pixels; a map of noise does so on
    average.

    Pixels that the mask ignores are left out, as in the authors' code. CHOICE, compared with it: the last bin
    includes the value 1, which has its own bin there.
    """

    name: ClassVar[str] = "pixel_precision"
    title: ClassVar[str] = "PxAP: average precision of the object's pixels (Choe et al. 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.MASKS})
    Parameters: ClassVar[type[Parameters]] = PixelPrecisionParameters

    def __init__(self, classifier: BlackBox, parameters: PixelPrecisionParameters) -> None:  # noqa: ARG002
        self.bins = parameters.bins

    def columns(self) -> list[Column]:
        return [
            Column("pxap", 0.0, 1.0, "higher", pooled="curve"),
            Column("pxap_center", 0.0, 1.0, None, pooled="curve"),
            Column("pxap_all_ones", 0.0, 1.0, None, pooled="curve"),
            Column("pixel_precision", 0.0, 1.0, "higher"),
            Column("pixel_precision_center", 0.0, 1.0, None),
            Column("pixel_precision_all_ones", 0.0, 1.0, None),
        ]

    @staticmethod
    def axes(column: str, parameters: PixelPrecisionParameters) -> Axes:  # noqa: ARG004
        return Axes("recall (share of the object's pixels)", "precision", histograms=True)

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; the curves of ``pxap`` are histograms, of which a dataset's number is computed.

        A curve has 2 bins points: the number of the object's pixels in each bin, from 0 to 1, and then the
        number of the other pixels. The columns ``center`` report what the control ``center_gaussian`` would
        score. The columns ``all_ones`` report what a constant map would score, which is the object's share of
        the pixels, from a single bin. All are NaN for images without a mask.
        """
        masks = torch.zeros_like(maps, dtype=torch.bool) if batch.masks is None else batch.masks
        objects, values = masks.flatten(1), maps.flatten(1)
        center = center_map((maps.shape[1], maps.shape[2]), maps.device).flatten()[None]
        constant = torch.ones_like(center)
        share = objects.float().mean(1)
        if batch.ignored is not None:
            ignored = batch.ignored.flatten(1)
            values, center, constant = (
                each.masked_fill(ignored, -torch.inf) for each in (values, center, constant)
            )
            share = objects.sum(1) / (~ignored).sum(1)
        undefined = (~objects.any(1) | unreadable(maps))[:, None]
        curves = {
            "pxap": histograms(values, objects, self.bins),
            "pxap_center": histograms(center, objects, self.bins),
            "pxap_all_ones": histograms(constant, objects, 1),
        }
        images = {
            "pixel_precision": average_precision(values, objects),
            "pixel_precision_center": average_precision(center, objects),
            "pixel_precision_all_ones": share,
        }
        images |= dict.fromkeys(curves, torch.full_like(images["pixel_precision"], torch.nan))
        return Scores(
            {c.name: images[c.name].masked_fill(undefined[:, 0], torch.nan) for c in self.columns()},
            {name: curve.masked_fill(undefined, torch.nan) for name, curve in curves.items()},
        )

    @staticmethod
    def of_mean_curve(column: str, curves: Tensor) -> Tensor:  # noqa: ARG004
        """Compute the average precision of (R, 2 bins) histograms, whose scale does not matter."""
        found, taken = found_and_taken(curves)
        precision = torch.where(taken > 0, found / taken, 0)
        inside = curves.unflatten(1, (2, -1))[:, 0].flip(1)
        return (inside * precision).sum(1) / found[:, -1]


def found_and_taken(curves: Tensor) -> tuple[Tensor, Tensor]:
    """Count the object's pixels, and all pixels, above each threshold, from the highest threshold down.

    Parameters
    ----------
    curves
        (R, 2 bins) histograms, as :func:`histograms` counts them.

    Returns
    -------
    found, taken
        (R, bins) each. Precision is found / taken, and recall is found over its last value.
    """
    inside, outside = curves.unflatten(1, (2, -1)).flip(2).unbind(1)
    return inside.cumsum(1), (inside + outside).cumsum(1)


def histograms(values: Tensor, objects: Tensor, bins: int) -> Tensor:
    """Count values in bins, inside and outside the object.

    Parameters
    ----------
    values
        (B, N) in [0, 1], or (1, N) for values that all images share. Values of -inf are not counted.
    objects
        (B, N) bool, the object's pixels.

    Returns
    -------
    (B, 2 bins) float32
        Counts inside the object, then counts outside it. Bin i holds [i, i + 1) / bins, and the last bin
        holds 1 too. NaN is counted in an arbitrary bin.
    """
    places = (values * bins).nan_to_num().long().clamp(0, bins - 1) + torch.where(objects, 0, bins)
    counts = torch.zeros(len(objects), 2 * bins, device=values.device)
    # Counts are exact in float32 up to 16 million pixels, so the order of the additions does not matter.
    return counts.scatter_add_(1, places, (~values.isneginf()).to(counts.dtype).expand(places.shape))


def average_precision(values: Tensor, objects: Tensor) -> Tensor:
    """Compute the average precision of each row; equal values enter at once.

    Parameters
    ----------
    values
        (B, N), or (1, N) for values that all images share. Pixels with -inf come last and do not count.
    objects
        (B, N) bool, the object's pixels; False where a value is -inf.

    Returns
    -------
    (B,) float32
        In [0, 1]; NaN for rows without an object.
    """
    descending, order = values.sort(1, descending=True)
    hits = objects.gather(1, order.expand_as(objects)).double().cumsum(1)
    taken = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    # Precision is read only where the next value is lower: elsewhere a threshold would divide a tie.
    last = torch.ones_like(descending, dtype=torch.bool)
    last[:, :-1] = descending[:, 1:] != descending[:, :-1]
    read = torch.where(last, hits, 0).cummax(1).values
    gained = read.diff(dim=1, prepend=torch.zeros_like(read[:, :1]))
    return ((gained * hits / taken).sum(1) / hits[:, -1]).float()
