"""The contract between Floodlit and a metric: (prepared maps, inputs, targets) -> one value an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor

from explainers.base import AnyParameters
from explainers.base import Need as ExplainerNeed

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox


class Need(StrEnum):
    """What a metric asks of the dataset and the job, checked before any work starts."""

    PIXELS = "pixels"  # inputs that are images
    BOXES = "boxes"  # boxes of the object, on some images at least
    MASKS = "masks"  # its pixels, on some images at least
    EXPLAINER = "explainer"  # the explainer once more, on altered inputs or networks


class NoParameters(AnyParameters):
    """There are none."""


class Explain(Protocol):
    """The explainer whose maps are scored, run again.

    ``needs`` are the explainer's own: one with ``TRAINED`` among them does not follow the classifier's
    weights, one with ``PREDICTION`` explains no other class than the predicted one.
    """

    @property
    def needs(self) -> frozenset[ExplainerNeed]: ...

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        targets: Tensor | None = None,
        classifier: BlackBox | None = None,
    ) -> Tensor:
        r"""Explain n inputs (n, C, \*sites), as the rows (n,) int64 of the batch were explained.

        Seeds are those of the rows, and so are the targets unless others (n,) are given; the classifier is
        the run's or another one with inputs and classes of the same shapes. Returns (n, \*sites) prepared
        maps, NaN where the explainer fails.
        """
        ...


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
    masks
        (B, H, W) bool, the object's pixels; none True where an image has no mask. None if no image has one.
    explain
        Runs the explainer again. None unless the metric needs :attr:`Need.EXPLAINER`.
    """

    inputs: Tensor
    targets: Tensor
    seeds: Tensor
    confidence: Tensor
    boxes: list[Tensor]
    forwards: int = 64
    masks: Tensor | None = None
    explain: Explain | None = None

    @property
    def explainer(self) -> Explain:
        """:attr:`explain` of a metric that needs it."""
        assert self.explain is not None
        return self.explain


@dataclass(frozen=True)
class Column:
    """One number a metric gives an image.

    ``better`` is "higher", "lower", or None for a reference value that judges no explainer.
    ``fill`` says what the metric perturbs with, None where it does not. ``low`` and ``high`` are the ends of
    its range, infinite ones included.

    ``within`` says what runs must have in common for numbers of one to be comparable with the other's:
    "classifier", "size" of the inputs, or None, nothing.

    With ``pooled`` = "curve" the number of a whole dataset is no mean of numbers: it is what
    :meth:`Pooled.of_mean_curve` makes of the mean curve. Images have curves and no values then.
    """

    name: str
    low: float
    high: float
    better: str | None
    fill: str | None = None
    pooled: Literal["curve"] | None = None
    within: Literal["classifier", "size"] | None = None


@dataclass(frozen=True)
class Scores:
    """``values``: {column: (B,)} with NaN where undefined; ``curves``: {column: (B, points)}."""

    values: Mapping[str, Tensor]
    curves: Mapping[str, Tensor] = field(default_factory=dict)


class Metric(Protocol):
    """A published metric family, one class in one file."""

    name: ClassVar[str]
    title: ClassVar[str]  # one line: what it measures, with its paper
    needs: ClassVar[frozenset[Need]]
    Parameters: ClassVar[type[AnyParameters]]

    def __init__(self, classifier: BlackBox, parameters: AnyParameters) -> None: ...

    def columns(self) -> list[Column]: ...

    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score (B, \\*sites) maps, prepared by :func:`tasks.metrics.preparation.prepare`.

        They are in [0, 1], and -inf where the input has nothing to show or hide, which is never scored.
        """
        ...


class Pooled(Metric, Protocol):
    """A metric some of whose columns are numbers of a whole dataset."""

    @staticmethod
    def of_mean_curve(column: str, curves: Tensor) -> Tensor:
        """(R,) values of one of its pooled columns from (R, points) float64 means of curves over images."""
        ...
