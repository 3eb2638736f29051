"""The contract between Floodlit and a metric.

A metric is a class with four class attributes (``name``, ``title``, ``needs``, ``Parameters``) and three
methods (``__init__``, ``columns``, ``score``), registered with ``@tasks.metrics.registry.register``; see
:class:`Metric`. It takes prepared maps, inputs and targets, and gives one or more numbers per input.
"""

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
    BOXES = "boxes"  # boxes of the object, for some of the images at least
    MASKS = "masks"  # masks of the object's pixels, for some of the images at least
    EXPLAINER = "explainer"  # the explainer, which runs again on altered inputs or networks


class NoParameters(AnyParameters):
    """Parameters of metrics that have none."""


class Explain(Protocol):
    """The explainer whose maps are scored, as a function that explains further inputs."""

    @property
    def needs(self) -> frozenset[ExplainerNeed]:
        """The needs of the explainer.

        With ``TRAINED`` among them, its maps do not follow the classifier's weights. With ``PREDICTION``
        among them, it explains no other class than the predicted one.
        """
        ...

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        targets: Tensor | None = None,
        classifier: BlackBox | None = None,
    ) -> Tensor:
        r"""Explain n inputs in the same way as rows of the batch were explained.

        Parameters
        ----------
        inputs
            (n, C, \*sites), of the shape and in the range of the batch's inputs. They may be altered.
        rows
            (n,) int64, indices into the batch. Input i is explained with the seed of row ``rows[i]``.
        targets
            (n,) int64, the classes to explain; those of the rows by default.
        classifier
            The classifier to explain, whose inputs and classes have the same shapes; the run's by default.

        Returns
        -------
        (n, \*sites) float32
            Maps prepared as those that :meth:`Metric.score` takes. A map is NaN at all sites where the
            explainer fails, as one that needs ``PREDICTION`` does for a target that is not predicted.
        """
        ...


@dataclass(frozen=True)
class MetricBatch:
    """B explained inputs.

    Attributes
    ----------
    inputs
        (B, C, \\*sites); images are (B, C, H, W) float32, with pixels in [0, 1].
    targets
        (B,) int64, the class that was explained.
    seeds
        (B,) int64, the only source of randomness, for instance to break ties.
    confidence
        (B,) float32, probability of the target on the whole input.
    boxes
        One (K, 4) float tensor per image: xmin, ymin, xmax, ymax in input pixels (continuous edges); K may
        be 0. Where boxes and masks belong to classes, these are those of the target.
    forwards
        Forward passes per perturbation step. It never changes a result.
    masks
        (B, H, W) bool, the object's pixels; all False for an image without a mask. None if no image has one.
    ignored
        (B, H, W) bool, pixels that are neither object nor background, which take no part in a score against
        ``masks``. None if there are none.
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
    ignored: Tensor | None = None
    explain: Explain | None = None

    @property
    def explainer(self) -> Explain:
        """:attr:`explain`, for metrics that need :attr:`Need.EXPLAINER` and so always have it."""
        assert self.explain is not None
        return self.explain


@dataclass(frozen=True)
class Column:
    """One of the numbers that a metric gives per image.

    Attributes
    ----------
    name
        Unique among the columns of all metrics.
    low, high
        The ends of the range of the values; they may be infinite.
    better
        "higher" or "lower"; None for a reference column, which is not ranked.
    fill
        What the metric perturbs inputs with, in words. None if it does not perturb them.
    pooled
        "curve": the number of a dataset is not the mean of its images' numbers, but what
        :meth:`Pooled.of_mean_curve` computes from the mean of their curves. Each image then has a curve, and
        NaN as its value.
    within
        What two runs must have in common so that their numbers can be compared: the same "classifier", or the
        same "size" of the inputs. None: nothing.
    """

    name: str
    low: float
    high: float
    better: str | None
    fill: str | None = None
    pooled: Literal["curve"] | None = None
    within: Literal["classifier", "size"] | None = None


@dataclass(frozen=True)
class Axes:
    """What the curves of a column are drawn against.

    Attributes
    ----------
    x, y
        Names of the two axes. In both, ``{sites}`` stands for the pixels or tokens of the inputs.
    at
        Where the points lie along x: "shares", evenly from 0 to 1; "numbers", at 1, 2, 3 and so on; or one
        number for each point.
    panels
        Headings of the curves that lie one after another in one curve, all with the same number of points;
        ``at`` is that of each of them. A single empty heading: it is one curve.
    histograms
        Whether the points are counts, as those of :class:`tasks.metrics.pixel_precision.PixelPrecision`. They
        are drawn as precision against recall.
    """

    x: str
    y: str
    at: Literal["shares", "numbers"] | tuple[float, ...] = "shares"
    panels: tuple[str, ...] = ("",)
    histograms: bool = False


@dataclass(frozen=True)
class Scores:
    """What a metric gives for a batch.

    Attributes
    ----------
    values
        {column: (B,) floats}, with NaN where a value is undefined.
    curves
        {column: (B, points) floats}, for the columns that have curves; the number of points is the same for
        every batch.
    """

    values: Mapping[str, Tensor]
    curves: Mapping[str, Tensor] = field(default_factory=dict)


class Metric(Protocol):
    """A published metric family, one class in one file."""

    name: ClassVar[str]
    title: ClassVar[str]  # one line: what it measures, with its paper
    needs: ClassVar[frozenset[Need]]
    Parameters: ClassVar[type[AnyParameters]]

    def __init__(self, classifier: BlackBox, parameters: AnyParameters) -> None:
        """Prepare to score maps of one classifier.

        Parameters
        ----------
        classifier
            The classifier that was explained.
        parameters
            An instance of the class's ``Parameters``.

        Raises
        ------
        ValueError
            In one line that begins with the key, if a parameter does not fit the classifier. The job is then
            refused before any work starts.
        """
        ...

    def columns(self) -> list[Column]:
        """Describe the numbers that :meth:`score` gives.

        The list is not empty, and depends on the classifier and the parameters alone. It has one column for
        each key of :attr:`Scores.values`; each key of :attr:`Scores.curves` is one of their names.
        """
        ...

    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps.

        A score depends on its own input, map, target and seed alone: not on the batch, its order, or
        ``batch.forwards``. A metric does not change its arguments and keeps nothing between batches.

        Parameters
        ----------
        batch
            The B inputs that were explained.
        maps
            (B, \\*sites) float32, prepared by :func:`tasks.metrics.preparation.prepare`: in [0, 1], and -inf
            at sites of the input that cannot be hidden, such as the padding of a text. These sites take no
            part in a score. A map that the explainer failed to give is NaN.

        Returns
        -------
        Scores
            A value per input and column, in the column's range or NaN. A map with NaN has NaN for every value
            and every point of its curves; so has an input that lacks what the metric needs, such as a box.
            Further cases of NaN, such as maps of zeros, are stated by each metric.
        """
        ...


class Pooled(Metric, Protocol):
    """A metric with at least one column whose number belongs to a whole dataset."""

    @staticmethod
    def of_mean_curve(column: str, curves: Tensor) -> Tensor:
        """Compute the number of a dataset from the mean curve of its images.

        Parameters
        ----------
        column
            Name of a column whose ``pooled`` is "curve".
        curves
            (R, points) float64, R mean curves: each is the mean of :attr:`Scores.curves` over images whose
            curve is not NaN, for instance over R bootstrap samples.

        Returns
        -------
        (R,)
            One number per mean curve, in the column's range.
        """
        ...


class Curved(Metric, Protocol):
    """A metric that says what the axes of its curves are. Curves of others get axes of neutral names."""

    @staticmethod
    def axes(column: str, parameters: AnyParameters) -> Axes:
        """Describe the axes of the curves of a column.

        Parameters
        ----------
        column
            Name of a column that has curves and is ranked.
        parameters
            An instance of the class's ``Parameters``.
        """
        ...
