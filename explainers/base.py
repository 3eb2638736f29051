"""The contract between Floodlit and an explainer.

An explainer is a class with four class attributes (``name``, ``title``, ``needs``, ``Parameters``) and
three methods (``__init__``, ``describe``, ``explain``), registered with ``@explainers.register``; see
:class:`Explainer`. It sees one batch at a time and keeps nothing between batches that could change a
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

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier


class Need(StrEnum):
    """What an explainer asks of the classifier and the job, checked before any work starts."""

    PIXELS = "pixels"  # inputs that are images
    SEQUENCE = "sequence"  # inputs on one axis: texts, series, rows of a table
    ACTIVATIONS = "activations"  # cached activations at the target layer, and the head
    GRADIENTS = "gradients"  # gradients through the head
    CURVATURE = "curvature"  # second derivatives through the head
    PATCHES = "patches"  # a transformer that runs on a subset of its patch tokens
    ATTENTION = "attention"  # a transformer whose attention matrices can be read
    POOLED = "pooled"  # a head that adds up the spatial means of channels, and nothing else
    PREDICTION = "prediction"  # the target class has to be the predicted one
    TRAINED = "trained"  # weights of its own, trained for this classifier, which it checks itself


class Status(StrEnum):
    """What became of one map."""

    OK = "ok"
    ALL_ZERO = "all_zero"
    CONSTANT = "constant"
    NOT_FINITE = "not_finite"
    FAILED = "failed"


class Parameters(BaseModel):
    """Base of every parameter class: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PresetParameters(Parameters):
    """Parameters whose published values may be out of reach: ``preset = "fast"`` has cheaper ones.

    Keys given beside the preset win. A class lists its cheaper values in ``FAST``.
    """

    FAST: ClassVar[Mapping[str, Any]] = {}

    preset: Literal["paper", "fast"] = Field("paper", description="fast: cheaper values where not given")

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
        (B, C, \\*sites): of images (B, 3, H, W) float32, pixels in [0, 1]; see
        :mod:`explainers.models.black_box`.
    targets
        (B,) int64, the class to explain.
    seeds
        (B,) int64, the only source of randomness.
    activations
        (B, \\*classifier.activation_shape), or None where the explainer does not need them.
    forwards
        Forward passes per perturbation step; halved by :func:`explainers.numerics.batching.in_chunks` when
        the device runs out of memory. Never changes a result.
    """

    inputs: Tensor
    targets: Tensor
    seeds: Tensor
    activations: Tensor | None = None
    forwards: int = 64

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Detail:
    """Shape (without the batch axis) and NumPy dtype name of one named detail."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Description:
    """What an explainer will produce with this classifier, known before it runs.

    ``grid`` is the shape of its maps: the method's native grid, never an upsampled one; (h, w) for images,
    one length for texts and series.
    """

    grid: tuple[int, ...]
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """Saliency maps of a batch.

    ``maps`` is (B, \\*grid) float32, raw and signed; ``statuses`` has one :class:`Status` a map;
    ``details`` holds tensors whose first axis is B, as described.
    """

    maps: Tensor
    statuses: list[Status]
    details: Mapping[str, Tensor] = field(default_factory=dict)


AnyParameters = Parameters  # the protocol's attribute below shadows the name


class Explainer(Protocol):
    """A published method, one class in one file."""

    name: ClassVar[str]
    title: ClassVar[str]  # one line: what it does, with its paper
    needs: ClassVar[frozenset[Need]]  # none: it explains any black box, whatever its inputs are
    Parameters: ClassVar[type[AnyParameters]]

    def __init__(self, classifier: Classifier, parameters: AnyParameters) -> None: ...

    def describe(self) -> Description: ...

    def explain(self, batch: Batch) -> Explanation: ...


def statuses_of(maps: Tensor, sites: Tensor | None = None) -> list[Status]:
    """Classify (B, \\*grid) maps: not finite, all zero, constant, or ok.

    Where ``sites`` (B, \\*grid) bool is given, by the values there alone, at least one a map.
    """
    flat = maps.flatten(1)
    away = torch.zeros_like(flat, dtype=torch.bool) if sites is None else ~sites.flatten(1)
    finite = (flat.isfinite() | away).all(1)
    highest = flat.masked_fill(away, -torch.inf).amax(1)
    constant = highest == flat.masked_fill(away, torch.inf).amin(1)
    zero = constant & (highest == 0)
    code = torch.where(finite, constant.long() + zero.long(), 3)
    names = [Status.OK, Status.CONSTANT, Status.ALL_ZERO, Status.NOT_FINITE]
    return [names[i] for i in code.tolist()]
