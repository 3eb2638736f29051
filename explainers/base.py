"""The contract between Floodlit and an explainer.

An explainer is a class with four class attributes (``name``, ``title``, ``needs``, ``Parameters``) and
three methods (``__init__``, ``describe``, ``explain``), registered with ``@explainers.register``; see
:class:`Explainer`. It processes one batch at a time and keeps nothing between batches that could change a
result: a map depends on its own image, target and seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from explainers.statuses import Status as Status  # noqa: PLC0414  # explainers import it from here

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier


class Need(StrEnum):
    """What an explainer requires of the classifier and the job; it is checked before any work starts."""

    PIXELS = "pixels"  # inputs that are images
    SEQUENCE = "sequence"  # inputs on one axis: texts, series, rows of a table
    ACTIVATIONS = "activations"  # cached activations at the target layer, and the head
    GRADIENTS = "gradients"  # gradients through the head
    CURVATURE = "curvature"  # second derivatives through the head
    PATCHES = "patches"  # a transformer that runs on a subset of its patch tokens
    ATTENTION = "attention"  # a transformer whose attention matrices can be read
    POOLED = "pooled"  # a head that adds up the spatial means of channels, and nothing else
    PREDICTION = "prediction"  # the target class has to be predicted, see probes.masked_forward.predicted
    TRAINED = "trained"  # weights of its own, trained for this classifier; the explainer checks them itself
    GIVEN = "given"  # maps of another program, which a job reads from the parameter ``path``


# The needs for which the network is cut at its target layer. An explainer without them gets a classifier that
# need not be cut, of any network that gives logits.
OF_LAYER = frozenset({Need.ACTIVATIONS, Need.GRADIENTS, Need.CURVATURE, Need.POOLED})


class Parameters(BaseModel):
    """Base of every parameter class. Its instances are frozen, and an unknown key is an error.

    A value has to be of the parameter's own type: neither "16" nor true nor 16.0 is the number 16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PresetParameters(Parameters):
    """Parameters whose published values may be too expensive; ``preset = "fast"`` sets cheaper ones.

    A key that the job gives takes precedence over the preset. A class lists its cheaper values in ``FAST``.
    """

    FAST: ClassVar[Mapping[str, Any]] = {}

    preset: Literal["paper", "fast"] = Field(
        "paper", description="fast: cheaper values for the keys that are not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        fast = isinstance(given, Mapping) and given.get("preset") == "fast"
        return {**cls.FAST, **given} if fast else given


@dataclass(frozen=True)
class Batch:
    """B inputs to explain, each for one target class.

    Attributes
    ----------
    inputs
        (B, C, \\*sites). For images this is (B, C, H, W) float32 with pixels in [0, 1]; for other inputs
        see :mod:`explainers.models.black_box`.
    targets
        (B,) int64, the class to explain, in [0, num_classes).
    seeds
        (B,) int64, one seed per input: the only source of randomness.
    activations
        (B, \\*classifier.activation_shape), or None where the explainer does not need them.
    forwards
        Forward passes per perturbation step; halved by :func:`explainers.numerics.batching.in_chunks` when
        the device runs out of memory. It never changes a result.
    given
        (B, \\*grid) float32, the maps that another program made, for explainers that need them
        (:attr:`Need.GIVEN`); else None.
    """

    inputs: Tensor
    targets: Tensor
    seeds: Tensor
    activations: Tensor | None = None
    forwards: int = 64
    given: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Detail:
    """The shape (without the batch axis) and the NumPy dtype name of one named detail."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Description:
    """What an explainer will produce with this classifier; it is known before the explainer runs.

    Attributes
    ----------
    grid
        Shape of one map: the method's native grid, never an upsampled one. (h, w) for images, one length for
        texts and series.
    details
        The details of each map, by name.
    """

    grid: tuple[int, ...]
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """Saliency maps of a batch.

    Attributes
    ----------
    maps
        (B, \\*grid) float32, raw and signed.
    statuses
        One :class:`Status` per map.
    details
        Tensors by name, (B, \\*shape) each, as :meth:`Explainer.describe` lists them.
    """

    maps: Tensor
    statuses: list[Status]
    details: Mapping[str, Tensor] = field(default_factory=dict)


AnyParameters = Parameters  # the protocol's attribute below shadows the name


class Explainer(Protocol):
    """A published method, one class in one file.

    Attributes
    ----------
    name
        The name of the method in jobs, files and tables.
    title
        One line that says what the method does, with its paper.
    needs
        What the method requires of the classifier and the job. An explainer without needs explains any black
        box, whatever its inputs are.
    Parameters
        The class of the method's parameters: frozen, with a default for every key.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    Parameters: ClassVar[type[AnyParameters]]

    def __init__(self, classifier: Classifier, parameters: AnyParameters) -> None:
        """Prepare the method for one classifier.

        What does not depend on an input, such as a property of the classifier's head, is computed here, once.

        Parameters
        ----------
        classifier
            The classifier to explain. It meets ``needs``, which the caller has checked. The explainer may run
            it, and leaves it as it was.
        parameters
            An instance of ``Parameters``.

        Raises
        ------
        ValueError
            In one line, if the parameters, or weights of the explainer's own, do not fit this classifier.
        """

    def describe(self) -> Description:
        """Say which maps and details :meth:`explain` gives, before it runs.

        The arrays of a run are created from this description, so that it depends on the classifier and the
        parameters alone.

        Returns
        -------
        Description
            The grid of the maps, and the shape and type of every detail, without the batch axis.
        """
        ...

    def explain(self, batch: Batch) -> Explanation:
        """Compute one saliency map for every input of a batch.

        A map depends on its own input, target and seed alone, not on the other inputs of the batch, their
        order or number, nor on earlier batches; ``batch.forwards`` changes no result either. All random
        numbers are drawn from ``batch.seeds``: the same seeds give the same bits again. The batch is left as
        it was, and so is the network: when the method returns or raises, no hook, gradient or other mode
        stays on it. The result is the same in and outside of :func:`torch.inference_mode`.

        Parameters
        ----------
        batch
            B inputs with their targets and seeds, and with activations where ``needs`` names activations.
            No forward pass holds more than the larger of B and ``batch.forwards`` whole inputs.

        Returns
        -------
        Explanation
            ``maps`` (B, \\*grid) float32 on the grid of :meth:`describe`, raw and signed: a map is clipped,
            normalised or upsampled only where the method's definition says so. One status per map; ``failed``
            where the method cannot be applied to an input, which is no error. The details of
            :meth:`describe`, with B as their first axis.

        Raises
        ------
        RuntimeError
            If the device has no memory left even for one forward pass at a time; see
            :func:`explainers.numerics.batching.out_of_memory`.
        """
        ...


def statuses_of(maps: Tensor, sites: Tensor | None = None) -> list[Status]:
    """Classify maps: not finite, all zero, constant, or ok.

    Parameters
    ----------
    maps
        (B, \\*grid).
    sites
        (B, \\*grid) bool, at least one True per map: the values that count. By default all of them count.

    Returns
    -------
    list
        One status per map.
    """
    flat = maps.flatten(1)
    away = torch.zeros_like(flat, dtype=torch.bool) if sites is None else ~sites.flatten(1)
    # The padding of a text has no value of its own, and must not make its map constant or not finite.
    finite = (flat.isfinite() | away).all(1)
    highest = flat.masked_fill(away, -torch.inf).amax(1)
    constant = highest == flat.masked_fill(away, torch.inf).amin(1)
    zero = constant & (highest == 0)
    code = torch.where(finite, constant.long() + zero.long(), 3)
    names = [Status.OK, Status.CONSTANT, Status.ALL_ZERO, Status.NOT_FINITE]
    return [names[i] for i in code.tolist()]
