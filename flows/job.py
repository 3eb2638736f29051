"""The job: one pydantic model that validates the TOML file and draws the Prefect form."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from explainers.base import Parameters
from explainers.controls import CONTROLS
from explainers.models.compute import Compute
from explainers.models.loading import ModelSpec
from explainers.registry import Registry, explainers
from storage.datasets.opening import DatasetSpec
from storage.places import Place, is_remote, place
from tasks.metrics.registry import metrics

REGISTERED = "models:"  # what MLflow's addresses of registered models begin with


class JobError(ValueError):
    """A job that cannot run, said in one line that names the key and the choices."""


class Strict(BaseModel):
    """An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(BaseModel):
    """One explainer or metric; every key besides ``name`` is a parameter of it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        description="a name `floodlit explainers` or `floodlit metrics` lists, or package.module:Name"
    )

    def parameters(self, registry: Registry[Any]) -> Parameters:
        """The keys as the parameter class of the named explainer or metric.

        Raises
        ------
        ValueError
            If the name or a key is unknown, or a value is out of range.
        """
        accepted: type[Parameters] = registry.get(self.name).Parameters
        extra = self.model_extra or {}
        unknown = sorted(set(extra) - set(accepted.model_fields))
        if unknown:
            known = ", ".join(accepted.model_fields) or "none"
            raise ValueError(
                f"{registry.kind} {self.name} has no parameter {unknown[0]!r}; it takes: {known}"
            )
        try:
            return accepted(**extra)
        except ValidationError as error:
            raise ValueError(f"{registry.kind} {self.name}: {one_line(error)}") from error


class TopTargets(Strict):
    """Explain each image's ``top`` most probable classes, one map each."""

    top: int = Field(ge=1, le=1000)


class Cluster(Strict):
    """Where the work runs: processes here, one a GPU, a Dask scheduler that is there, or any Dask cluster."""

    kind: Literal["local", "cuda", "address", "class"] = Field(
        "local",
        description="local: processes on this machine; cuda: one process a GPU of this machine (dask-cuda); "
        "address: a running Dask scheduler; class: a cluster of dask-jobqueue, dask-kubernetes, ...",
    )
    workers: int | None = Field(
        None, ge=1, description="processes; by default as many as cores, at most 4 (local), or as GPUs (cuda)"
    )
    address: str | None = Field(None, description="address: tcp://host:port of the scheduler")
    cluster_class: str | None = Field(None, description="class: e.g. dask_jobqueue.SLURMCluster")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="class: what the cluster class is called with"
    )

    @model_validator(mode="after")
    def _keys_belong_to_their_kinds(self) -> Cluster:
        owners: dict[str, tuple[str, ...]] = {
            "address": ("address",),
            "cluster_class": ("class",),
            "arguments": ("class",),
        }
        owners["workers"] = ("local", "cuda", "class")
        needed = {"address": ["address"], "class": ["cluster_class", "workers"]}.get(self.kind, [])
        for key in needed:
            if getattr(self, key) is None:
                raise ValueError(f'kind = "{self.kind}" needs the key {key}')
        for key, kinds in owners.items():
            if getattr(self, key) and self.kind not in kinds:
                raise ValueError(f'kind = "{self.kind}" does not take the key {key}')
        return self

    @property
    def expected_workers(self) -> int:
        """Workers as far as the job tells: those of an address are not known before it is asked."""
        if self.workers or self.kind in {"address", "class"}:
            return self.workers or 1
        return min(4, os.cpu_count() or 1) if self.kind == "local" else max(1, torch.cuda.device_count())


class Batching(Strict):
    """Sizes that bound memory and never change a result beyond float tolerance."""

    images: int = Field(16, ge=1, description="images per step")
    forwards: int = Field(64, ge=1, description="forward passes per perturbation step")
    shard: int | None = Field(
        None, ge=1, description="images per shard; chosen from the size of the job by default"
    )


class Located(Strict):
    """What every job says: one dataset, one model, and where the results go."""

    name: str = Field(min_length=1, description="run name in Prefect and MLflow")
    store: Place = Field(description="where the results go: a folder, or s3://bucket/prefix")
    seed: int = 0
    dataset: DatasetSpec
    model: ModelSpec
    tracking: str | None = Field(
        None, description="MLflow tracking URI; mlflow.db beside the store by default"
    )

    @field_validator("store")
    @classmethod
    def _store_is_absolute(cls, store: Path, info: ValidationInfo) -> Path:
        return _anchored(store, info)

    @model_validator(mode="after")
    def _stores_on_s3_are_tracked_elsewhere(self) -> Located:
        if is_remote(self.store) and "/" not in str(self.store).removeprefix("s3://").rstrip("/"):
            raise ValueError("store: a bucket alone does not do; give s3://bucket/prefix")
        if is_remote(self.store) and not (self.tracking or "").startswith(("http:", "https:", "sqlite:")):
            raise ValueError(
                "tracking: of a store on S3 say where MLflow keeps its runs: http://host:5000, or sqlite:///FILE"
            )
        return self

    @field_validator("dataset")
    @classmethod
    def _dataset_paths_are_absolute(cls, dataset: DatasetSpec, info: ValidationInfo) -> DatasetSpec:
        given = {key: getattr(dataset, key) for key in ("path", "images")}
        return dataset.model_copy(update={key: _anchored(path, info) for key, path in given.items() if path})

    @field_validator("model")
    @classmethod
    def _model_paths_are_absolute(cls, model: ModelSpec, info: ValidationInfo) -> ModelSpec:
        return model.relative_to(folder_of(info))


class Job(Located):
    """One dataset, explained for one model by some explainers and scored by some metrics."""

    target: Literal["predicted", "label"] | int | TopTargets = Field(
        "predicted", description='class to explain: "predicted", "label", a class index, or {top = k}'
    )
    explainers: list[Choice] = Field(min_length=1)
    controls: bool = Field(True, description=f"add the controls {', '.join(CONTROLS)}")
    metrics: list[Choice] = Field(min_length=1)
    batch: Batching = Field(default_factory=Batching)
    compute: Compute = Field(default_factory=Compute)
    cluster: Cluster = Field(default_factory=Cluster)
    tolerance: float = Field(
        0.0, ge=0, le=1, description="share of the steps of explainers that may fail in a job that succeeds"
    )
    keep_activations: bool = Field(False, description="keep activations.zarr when the job is complete")

    @field_validator("explainers")
    @classmethod
    def _explainers_exist(cls, choices: list[Choice], info: ValidationInfo) -> list[Choice]:
        return _checked([_located(choice, info) for choice in choices], explainers)

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, choices: list[Choice]) -> list[Choice]:
        return _checked(choices, metrics)

    def explainer_parameters(self) -> dict[str, Parameters]:
        """Parameters of every explainer of the run by name, the controls included."""
        chosen = {choice.name: choice.parameters(explainers) for choice in self.explainers}
        if self.controls:
            chosen |= {name: explainers.get(name).Parameters() for name in CONTROLS if name not in chosen}
        return chosen

    def metric_parameters(self) -> dict[str, Parameters]:
        """Parameters of every metric by name."""
        return {choice.name: choice.parameters(metrics) for choice in self.metrics}

    def identity(self) -> dict[str, Any]:
        """What makes the results what they are; where and how fast they are computed is left out.

        Of ``compute``, which came later, what is not the default: without it a job is the one it was.
        """
        kept = {"name", "target", "seed", "dataset", "model"}
        compute = self.compute.model_dump(mode="json", exclude_defaults=True)
        return self.model_dump(mode="json", include=kept) | ({"compute": compute} if compute else {})

    @property
    def targets_per_image(self) -> int:
        """Maps per image and explainer."""
        return self.target.top if isinstance(self.target, TopTargets) else 1


def _checked(choices: list[Choice], registry: Registry[Any]) -> list[Choice]:
    for position, choice in enumerate(choices):
        choice.parameters(registry)
        if choice.name in [earlier.name for earlier in choices[:position]]:
            raise ValueError(f"{registry.kind} {choice.name} is named twice; name it once")
    return choices


def _located(choice: Choice, info: ValidationInfo) -> Choice:
    """The same choice, with its paths, which are relative to the job, as absolute ones."""
    fields = explainers.get(choice.name).Parameters.model_fields
    given = choice.model_extra or {}
    paths = {
        key: str(_anchored(Path(value), info))
        for key, value in given.items()
        if key in fields and _is_path(fields[key].annotation) and not str(value).startswith(REGISTERED)
    }
    return choice.model_copy(update=paths)


def _is_path(annotation: Any) -> bool:
    """Whether a parameter is a path, or none."""
    return annotation is Path or Path in get_args(annotation)


JobType = TypeVar("JobType", bound=Located)


def read_job(path: Path, kind: type[JobType], store: Path | None = None) -> JobType:
    """The job in a TOML file, its relative paths taken from the file's folder.

    Raises
    ------
    JobError
        In one line, if the file cannot be read or describes no valid job.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not valid TOML: {error}") from error
    if store is not None:
        raw["store"] = str(place(store).absolute())
    try:
        return kind.model_validate(raw, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise JobError(f"{path}: {one_line(error)}") from error


def folder_of(info: ValidationInfo) -> Path:
    """Where relative paths start: at the job's file, or at the working directory where there is no file."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder


def _anchored(path: Path, info: ValidationInfo) -> Path:
    return path if is_remote(path) else Path(os.path.normpath(folder_of(info) / path.expanduser()))


def one_line(error: ValidationError) -> str:
    """Every complaint of pydantic as ``key: what is wrong``, on one line."""
    return "; ".join(
        f"{_dotted(problem['loc'])}: {_words(problem)}" if problem["loc"] else _words(problem)
        for problem in error.errors()
    )


def _words(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key; see `floodlit run --help` and the README for the keys of a job"
    message: str = problem["msg"]
    return message.removeprefix("Value error, ")


def _dotted(location: Iterable[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
