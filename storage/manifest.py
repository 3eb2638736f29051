"""What ``run.json`` says, and whether a job is the run that lies there, extends it, or is another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class RunMismatchError(ValueError):
    """The folder holds another run."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DetailEntry(_Entry):
    """Shape without the row axis, and NumPy type name, of one detail of an explainer."""

    shape: tuple[int, ...]
    dtype: str


class ExplainerEntry(_Entry):
    """One explainer of the run: its parameters, the grid of its maps, its layer, its details.

    ``files`` has the SHA-256 of each parameter that is a file.
    """

    parameters: dict[str, Any]
    grid: tuple[int, ...]
    layer: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    details: dict[str, DetailEntry] = Field(default_factory=dict)


class MetricEntry(_Entry):
    """One metric of the run: its parameters, and its columns with their ranges and directions."""

    parameters: dict[str, Any]
    columns: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Manifest(_Entry):
    """What ``run.json`` says.

    Attributes
    ----------
    job
        The resolved job, for people to read.
    identity
        The part of it that results depend on, explainers and metrics apart; another one is another run.
    versions
        Of the code and its libraries, when the run was created.
    modality
        What an input is; the type of ``inputs.zarr`` follows from it.
    rows, targets_per_image
        Number of images (texts, ...), and maps an image: map row = image row * targets_per_image + target.
    shard_rows
        Images a shard. Results do not depend on it, so an existing run keeps its own.
    input_shape, activation_shape
        Of one row, (C, \\*sites) of the input; no activations are kept where ``activation_shape`` is None.
    geometry
        How images become inputs: resize, crop and interpolation of
        :func:`storage.datasets.opening.prepare_image`. Of numbers: ``shape``, that of a row of the dataset.
    masks
        Whether the images' masks are kept beside them.
    hash, created, updates
        Filled in by :meth:`Run.create_or_open`: the hash of ``identity``, and what was added when.
    """

    job: dict[str, Any]
    identity: dict[str, Any]
    versions: dict[str, str]
    model_fingerprint: str
    dataset_fingerprint: str
    modality: Literal["image", "text", "tensor"] = "image"
    rows: int = Field(ge=1)
    shard_rows: int = Field(ge=1)
    targets_per_image: int = Field(1, ge=1)
    input_shape: tuple[int, ...]
    activation_shape: tuple[int, ...] | None = None
    geometry: dict[str, Any] = Field(default_factory=dict)
    masks: bool = False
    map_dtype: Literal["float32", "float16"] = "float32"
    explainers: dict[str, ExplainerEntry]
    metrics: dict[str, MetricEntry]
    hash: str = ""
    created: str = ""
    updates: list[dict[str, Any]] = Field(default_factory=list)


def plain(manifest: Manifest, **update: Any) -> Manifest:
    """The manifest as it comes back from JSON: tuples in parameters are lists, and so on."""
    return Manifest.model_validate(json.loads(json.dumps(manifest.model_dump(mode="json") | update)))


def read_manifest(root: Path) -> Manifest:
    """The manifest in ``root``; a ValueError in one line if it cannot be read."""
    path = root / "run.json"
    try:
        return Manifest.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is not a run of this version: {where}: {first['msg']}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; restore it or choose another store") from error


def continued(root: Path, known: Manifest, wanted: Manifest, now: str) -> Manifest:
    """The known run with what ``wanted`` adds to it.

    Raises
    ------
    RunMismatchError
        If ``wanted`` is neither the same nor an extension; names the fields that differ.
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
        "explainers": wanted.explainers,
        "metrics": wanted.metrics,
        "activation_shape": wanted.activation_shape or known.activation_shape,
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
    """One phrase for each field in which ``wanted`` is not ``known`` or an extension of it."""
    old, new = _compared(known), _compared(wanted)
    removed = []
    for kind in ("explainers", "metrics"):
        removed += [f"{kind}.{name} is no longer there" for name in old[kind] if name not in new[kind]]
        both = [name for name in old[kind] if name in new[kind]]
        old[kind], new[kind] = ({name: side[kind][name] for name in both} for side in (old, new))
    if known.activation_shape is None or wanted.activation_shape is None:
        del old["activation_shape"], new["activation_shape"]
    return removed + differences(old, new)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for each field, by its dotted name, that is not the same in two nested mappings."""
    before, after = _flat(old), _flat(new)
    return [
        f"{field} was {_short(before, field)} and is {_short(after, field)}"
        for field in before | after
        if before.get(field) != after.get(field)  # a key that came later and is not used is none
    ]


def _compared(manifest: Manifest) -> dict[str, Any]:
    """The fields that must stay as they are; those of the identity by their own names, as in the job."""
    apart = {"job", "identity", "versions", "shard_rows", "hash", "created", "updates"}
    return manifest.identity | manifest.model_dump(mode="json", exclude=apart)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys; an empty mapping is a value."""
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    dot = f"{prefix}." if prefix else ""
    return {key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{dot}{name}").items()}


def _short(values: Mapping[str, Any], field: str) -> str:
    if field not in values:
        return "absent"
    text = "none" if values[field] is None else json.dumps(values[field], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
