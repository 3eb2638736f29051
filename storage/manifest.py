"""The manifest of a run, and the comparison of a job with an existing run.

The job may be the same run, extend it, or be another run.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.errors import FloodlitError


class RunMismatchError(FloodlitError, ValueError):
    """The folder holds another run."""

    exit_code = 2


class _Entry(BaseModel):
    """Base of the manifest's tables: values cannot change, and an unknown key is an error."""

    # JSON has no infinity, and ranges of metrics have: it is written as a constant of Python's JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class DetailEntry(_Entry):
    """One detail of an explainer: its shape without the row axis, and its NumPy type name."""

    shape: tuple[int, ...]
    dtype: str


class ExplainerEntry(_Entry):
    """One explainer of the run.

    Attributes
    ----------
    parameters
        Its parameters, with all defaults.
    grid
        Shape of its maps.
    layer
        The target layer, or several in order; None if the explainer reads no activations.
    files
        SHA-256 of each parameter that is a file or a folder.
    details
        Its details by name.
    name
        The explainer's own name where the job gave it a label, by which the run calls it; else None.
    given
        Of which samples another program made the maps, and what is known of their classes, in words; empty
        for explainers that make their maps themselves.
    """

    parameters: dict[str, Any]
    grid: tuple[int, ...]
    layer: str | tuple[str, ...] | None = None
    files: dict[str, str] = Field(default_factory=dict)
    details: dict[str, DetailEntry] = Field(default_factory=dict)
    name: str | None = None
    given: str = ""


class ColumnEntry(_Entry):
    """One number that a metric gives: its range, its direction and the fill of the metric's perturbation.

    The fields are those of :class:`tasks.metrics.base.Column`.
    """

    name: str
    low: float
    high: float
    better: str | None
    fill: str | None = None
    pooled: str | None = None
    within: str | None = None


class MetricEntry(_Entry):
    """One metric of the run: its parameters and its columns by name."""

    parameters: dict[str, Any]
    columns: dict[str, ColumnEntry] = Field(default_factory=dict)


class FindingsEntry(_Entry):
    """How findings are looked for with one explainer: passes through the network per class, at most."""

    passes: int = Field(ge=0)


class Manifest(_Entry):
    """The content of ``run.json``.

    Attributes
    ----------
    job
        The job with all defaults filled in, for people to read.
    identity
        The part of the job on which the results depend, without explainers and metrics. Changing a value
        starts a new run.
    versions
        Versions of the code and its libraries when the run was created.
    model_fingerprint, dataset_fingerprint
        Fingerprints of the model's weights and of the dataset.
    weights
        Where in the file of weights those of the model were, which others fit it too, and what was cast; see
        :class:`explainers.models.checkpoints.Taken`. Empty if the job names no file.
    modality
        Kind of the inputs.
    input_dtype
        NumPy type of ``inputs.zarr``.
    rows
        Number of images, texts or arrays.
    targets_per_image
        Number of maps per image and explainer: map row = image row * targets_per_image + target.
    shard_rows
        Images per shard. Results do not depend on it, so an existing run keeps its own number.
    input_shape
        Shape of one input, (C, \\*sites).
    activation_shape
        Shape of one input's activations; None if no activations are kept. Those at several layers are in one
        row, layer by layer.
    geometry
        For images: the keyword arguments of :func:`storage.datasets.geometry.prepare_image`. For tensors:
        ``shape``, the shape of a row of the dataset. Empty for texts.
    num_classes
        Number of the model's classes.
    outputs
        How the network's outputs are read, in words; empty where they are those of a softmax.
    exclusive
        Whether classes exclude each other; otherwise an input may have several labels.
    label_indices
        The model's class by the dataset's own label; a label that is left out is none of the model's classes.
        None if the labels are the model's numbers as they are.
    named_by_dataset
        Whether the names of the dataset's classes are those of the model's. Otherwise the model may have
        names of its own.
    labels
        How the labels became the model's numbers, in words; empty if there are no labels.
    masks
        Whether the images' masks are stored beside the images.
    mask_labels
        The number of masks that are stored per image, one for each of its first labels; 0: one mask, of the
        object whatever its class is.
    left_out
        The number of files in the dataset's folder that are no samples, by what they are, e.g. ``*.txt``.
    dataset_read
        How the dataset was read where the job leaves that open, e.g. from which columns, in words.
    map_dtype
        NumPy type of the maps.
    later_layer
        The target layer, or several, if the first job of the run used none and a later one does.
    layer_choice
        How the target layer was chosen where the job names none, and which other places there are, in words.
    probes
        What the probes at load saw, by the name of the probe; see :mod:`explainers.models.probes_at_load`. It
        is that of the job that created the run, for people to read.
    explainers, metrics
        Explainers and metrics by name.
    findings
        The explainers with whose maps findings are looked for. It is left out of the file if there are none.
    hash, created, updates
        The hash of ``identity``, the time when the run was created, and what was added when.
        :meth:`Run.create_or_open` fills them in.
    """

    job: dict[str, Any]
    identity: dict[str, Any]
    versions: dict[str, str]
    model_fingerprint: str
    dataset_fingerprint: str
    weights: dict[str, Any] = Field(default_factory=dict)
    modality: Literal["image", "text", "tensor"] = "image"
    input_dtype: Literal["uint8", "uint16", "int32", "float32"] = "uint8"
    rows: int = Field(ge=1, le=10**12)
    shard_rows: int = Field(ge=1, le=10**12)
    targets_per_image: int = Field(1, ge=1, le=10**6)
    input_shape: tuple[int, ...]
    activation_shape: tuple[int, ...] | None = None
    geometry: dict[str, Any] = Field(default_factory=dict)
    num_classes: int | None = None
    outputs: str = ""
    exclusive: bool = True
    label_indices: dict[int, int] | None = None
    named_by_dataset: bool = False
    labels: str = ""
    masks: bool = False
    mask_labels: int = Field(0, ge=0, le=10**6)
    left_out: dict[str, int] = Field(default_factory=dict)
    dataset_read: str = ""
    map_dtype: Literal["float32", "float16"] = "float32"
    later_layer: str | tuple[str, ...] | None = None
    layer_choice: str = ""
    probes: dict[str, str] = Field(default_factory=dict)
    explainers: dict[str, ExplainerEntry]
    metrics: dict[str, MetricEntry]
    findings: dict[str, FindingsEntry] = Field(default_factory=dict, exclude_if=operator.not_)
    hash: str = ""
    created: str = ""
    updates: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def layer(self) -> str | tuple[str, ...] | None:
        """Target layer of the model, or several; None as long as nothing in the run has used a layer.

        A run whose first job used none learns its layer from the explainers that are added later.
        """
        # Runs of earlier versions have no `later_layer`.
        of_explainers = (entry.layer for entry in self.explainers.values() if entry.layer is not None)
        recorded = self.identity.get("layer") or self.later_layer or next(of_explainers, None)
        return tuple(recorded) if isinstance(recorded, list) else recorded


def plain(manifest: Manifest, **update: Any) -> Manifest:
    """Return the manifest as it is read back from JSON, where e.g. tuples in parameters are lists."""
    return Manifest.model_validate(json.loads(json.dumps(manifest.model_dump(mode="json") | update)))


def continued(root: Path, known: Manifest, wanted: Manifest, now: str) -> Manifest:
    """Return the existing run, extended by the explainers and metrics that ``wanted`` adds.

    Parameters
    ----------
    root
        The run folder, for the message.
    known
        The manifest of the existing run.
    wanted
        The manifest of the job.
    now
        The time that is recorded for an update.

    Raises
    ------
    RunMismatchError
        If ``wanted`` is neither the same run nor an extension of it. The message names the fields that
        differ.
    """
    differences = _differences(known, wanted)
    if differences:
        more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise RunMismatchError(
            f"{root} holds another run: {'; '.join(differences[:8])}{more}. Choose another store, or "
            f"restore the old values"
        )
    update: dict[str, Any] = {
        "job": wanted.job,
        "left_out": wanted.left_out,
        "dataset_read": wanted.dataset_read,
        "explainers": wanted.explainers,
        "metrics": wanted.metrics,
        "findings": known.findings | wanted.findings,
        # A job whose explainers read no activations has no shape; the arrays of the run stay.
        "activation_shape": wanted.activation_shape or known.activation_shape,
        "later_layer": known.later_layer or (wanted.layer if known.layer is None else None),
        "layer_choice": known.layer_choice or wanted.layer_choice,
    }
    added = {
        "explainers": sorted(set(wanted.explainers) - set(known.explainers)),
        "metrics": sorted(set(wanted.metrics) - set(known.metrics)),
    }
    versions = known.updates[-1]["versions"] if known.updates else known.versions
    if any(added.values()) or versions != wanted.versions:
        update["updates"] = [*known.updates, {"time": now, "versions": wanted.versions, **added}]
    return known.model_copy(update=update)


def _differences(known: Manifest, wanted: Manifest) -> list[str]:
    """Return one phrase for each field in which ``wanted`` is neither the same nor an extension."""
    old, new = _compared(known), _compared(wanted)
    removed = []
    for kind in ("explainers", "metrics"):
        removed += [f"{kind}.{name} is no longer there" for name in old[kind] if name not in new[kind]]
        both = [name for name in old[kind] if name in new[kind]]
        old[kind], new[kind] = ({name: side[kind][name] for name in both} for side in (old, new))
    if known.activation_shape is None or wanted.activation_shape is None:
        del old["activation_shape"], new["activation_shape"]
    # A job that uses no layer fits a run with any layer, and the reverse.
    old["layer"], new["layer"] = known.layer, wanted.layer
    if known.layer is None or wanted.layer is None:
        del old["layer"], new["layer"]
    return removed + differences(old, new)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each field that differs in two nested mappings; fields have dotted names."""
    before, after = _flat(old), _flat(new)
    return [
        f"{field} was {_short(before, field)} and is {_short(after, field)}"
        for field in before | after
        if before.get(field) != after.get(field)
    ]


def _compared(manifest: Manifest) -> dict[str, Any]:
    """Return the fields that must not change; those of the identity have the names of the job's keys."""
    # The fingerprint says whether the weights are the same, wherever they were in their file.
    apart = {"job", "identity", "versions", "weights", "labels", "probes", "outputs"}
    apart |= {"layer_choice", "later_layer"}  # the layers are compared as `Manifest.layer` gives them
    apart |= {"shard_rows", "hash", "created", "updates", "left_out", "dataset_read", "findings"}
    return manifest.identity | manifest.model_dump(mode="json", exclude=apart)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys; an empty mapping counts as a value."""
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    dot = f"{prefix}." if prefix else ""
    return {key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{dot}{name}").items()}


def _short(values: Mapping[str, Any], field: str) -> str:
    """Return the value of a field for a message, with at most 60 characters."""
    if field not in values:
        return "absent"
    text = "none" if values[field] is None else json.dumps(values[field], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
