"""The contract between Floodlit and a metric: (prepared maps, inputs, targets) -> one value an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from explainers.base import AnyParameters

if TYPE_CHECKING:
    from explainers.black_box import BlackBox


@dataclass(frozen=True)
class MetricBatch:
    """B explained inputs.

    Attributes
    ----------
    inputs
        (B, C, \\*sites); of images (B, 3, H, W) float32, pixels in [0, 1].
    targets
        (B,) int64, the class that was explained.
    seeds
        (B,) int64, for tie-breaks.
    confidence
        (B,) float32, softmax probability of the target on the whole input.
    boxes
        One (K, 4) float tensor an image: xmin, ymin, xmax, ymax in input pixels (continuous edges); K
        may be 0.
    forwards
        Forward passes per perturbation step.
    """

    inputs: Tensor
    targets: Tensor
    seeds: Tensor
    confidence: Tensor
    boxes: list[Tensor]
    forwards: int = 64


@dataclass(frozen=True)
class Column:
    """One number a metric gives an image.

    ``better`` is "higher", "lower", or None for a reference value that judges no explainer.
    ``fill`` says what the metric perturbs with, None where it does not.
    """

    name: str
    low: float
    high: float
    better: str | None
    fill: str | None = None


@dataclass(frozen=True)
class Scores:
    """``values``: {column: (B,)} with NaN where undefined; ``curves``: {column: (B, points)}."""

    values: Mapping[str, Tensor]
    curves: Mapping[str, Tensor] = field(default_factory=dict)


class Metric(Protocol):
    """A published metric family, one class in one file."""

    name: ClassVar[str]
    title: ClassVar[str]  # one line: what it measures, with its paper
    needs_boxes: ClassVar[bool]
    Parameters: ClassVar[type[AnyParameters]]

    def __init__(self, classifier: BlackBox, parameters: AnyParameters) -> None: ...

    def columns(self) -> list[Column]: ...

    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) maps, prepared by :func:`tasks.metrics.preparation.prepare`.

        They are in [0, 1], and -inf where the input has nothing to show or hide, which is never scored.
        """
        ...
