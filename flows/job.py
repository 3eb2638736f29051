"""The job: one pydantic model that validates the TOML file and defines Prefect's form."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from explainers.base import Parameters
from explainers.controls import CONTROLS
from explainers.models.compute import Compute
from explainers.models.loading import ModelSpec
from explainers.registry import Registry, complaints, explainers
from storage.datasets.spec import DatasetSpec
from storage.errors import FloodlitError
from storage.places import Place, is_remote, place
from tasks.metrics.registry import metrics

UNKNOWN = "unknown key; docs/job.md lists the keys of a job, and docs/training.md those of a training"
REGISTERED = "models:"  # the beginning of MLflow's addresses of registered models


class JobError(FloodlitError, ValueError):
    """The job cannot run; the message is one line that names the key and the choices."""

    exit_code = 2


class Strict(BaseModel):
    """Base of the job's tables: values cannot change, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(BaseModel):
    """One explainer or metric; every key besides ``name`` is one of its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        description="name that `floodlit explainers` or `floodlit metrics` lists, or package.module:Name"
    )

    def parameters(self, registry: Registry[Any]) -> Parameters:
        """Return the keys as an object of the parameter class of the named explainer or metric.

        Raises
        ------
        ValueError
            If the name or a key is unknown, or a value is out of range.
        """
        parameters: Parameters = registry.parameters(self.name, self.model_extra or {})
        return parameters


class TopTargets(Strict):
    """Explain the ``top`` most probable classes of each image, with one map per class."""

    top: StrictInt = Field(ge=1, le=1000, description="number of classes, and so of maps, per image")


class Cluster(Strict):
    """Workers of the job: local processes, one process per GPU, an existing scheduler, or a Dask cluster."""

    kind: Literal["local", "cuda", "address", "class"] = Field(
        "local",
        description="local: processes on this machine; cuda: one process per GPU of this machine, by "
        "dask-cuda; address: a running Dask scheduler; class: a cluster of dask-jobqueue, dask-kubernetes or "
        "another package",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="number of worker processes; by default the number of cores, at most 4 (local), or the "
        'number of GPUs (cuda); required for kind = "class"',
    )
    address: str | None = Field(
        None, description='address of the scheduler, tcp://host:port, for kind = "address"'
    )
    cluster_class: str | None = Field(
        None,
        description='name of the cluster class, e.g. dask_jobqueue.SLURMCluster, for kind = "class"',
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description='keyword arguments of the cluster class, besides n_workers, for kind = "class"',
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
        """Number of workers as far as the job says it.

        It is 1 for the kind "address", whose workers are not known before the scheduler is asked.
        """
        if self.workers or self.kind in {"address", "class"}:
            return self.workers or 1
        return min(4, os.cpu_count() or 1) if self.kind == "local" else max(1, torch.cuda.device_count())


class Batching(Strict):
    """Batch sizes; they bound memory and never change a result beyond float tolerance."""

    images: int = Field(16, ge=1, description="number of images per step")
    forwards: int = Field(64, ge=1, description="number of forward passes per perturbation step")
    shard: int | None = Field(
        None, ge=1, description="number of images per shard; by default chosen from the size of the job"
    )


class Located(Strict):
    """Keys of every job: one dataset, one model, and the place of the results."""

    name: str = Field(min_length=1, description="name of the run in Prefect and MLflow")
    store: Place = Field(description="place of the results: a folder, or s3://bucket/prefix")
    seed: int = Field(
        0, description="seed of the random numbers that explainers, metrics, intervals and trainings draw"
    )
    dataset: DatasetSpec = Field(description="the images, texts or arrays")
    model: ModelSpec = Field(description="the classifier that is explained")
    tracking: str | None = Field(
        None, description="MLflow tracking URI; by default mlflow.db beside the store"
    )

    @field_validator("store")
    @classmethod
    def _store_is_absolute(cls, store: Path, info: ValidationInfo) -> Path:
        return _anchored(store, info)

    @model_validator(mode="after")
    def _stores_on_s3_are_tracked_elsewhere(self) -> Located:
        if is_remote(self.store) and "/" not in str(self.store).removeprefix("s3://").rstrip("/"):
            raise ValueError("store: a bucket alone is not enough; give s3://bucket/prefix")
        if is_remote(self.store) and not (self.tracking or "").startswith(("http:", "https:", "sqlite:")):
            raise ValueError(
                "tracking: a store on S3 needs the address of MLflow: http://host:5000, or sqlite:///FILE"
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
    """A job: one dataset, one model, explainers of the model, and metrics that score the explainers."""

    target: Literal["predicted", "label"] | StrictInt | TopTargets = Field(
        "predicted",
        description='class that is explained: "predicted", "label", a class index, or {top = k} for the k '
        "most probable classes",
    )
    explainers: list[Choice] = Field(
        min_length=1, description="explainers; every key besides `name` is a parameter of the explainer"
    )
    controls: bool = Field(True, description=f"add the controls {', '.join(CONTROLS)}")
    metrics: list[Choice] = Field(
        min_length=1, description="metrics; every key besides `name` is a parameter of the metric"
    )
    batch: Batching = Field(
        default_factory=Batching,
        description="batch sizes; they bound memory and never change a result beyond float tolerance",
    )
    compute: Compute = Field(
        default_factory=Compute, description="precision and compilation of the forward passes"
    )
    cluster: Cluster = Field(default_factory=Cluster, description="the workers that run the job")
    tolerance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest share of the explainers' steps that may fail in a job that succeeds",
    )
    keep_activations: bool = Field(
        False, description="keep activations.zarr after the job; by default it is deleted"
    )

    @field_validator("target", mode="before")
    @classmethod
    def _target_is_a_class(cls, target: object) -> object:
        # In Python a truth value is a whole number too, and a message of pydantic about a union says little.
        if isinstance(target, bool | float) or target is None:
            raise ValueError(
                f'{json.dumps(target)} is no class; write "predicted", "label", a class index such as 281, '
                "or {top = 3}"
            )
        return target

    @field_validator("explainers")
    @classmethod
    def _explainers_exist(cls, choices: list[Choice], info: ValidationInfo) -> list[Choice]:
        return _checked([_located(choice, info) for choice in choices], explainers)

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, choices: list[Choice]) -> list[Choice]:
        return _checked(choices, metrics)

    def explainer_parameters(self) -> dict[str, Parameters]:
        """Return the parameters of every explainer of the run by name, including the controls."""
        chosen = {choice.name: choice.parameters(explainers) for choice in self.explainers}
        if self.controls:
            chosen |= {name: explainers.get(name).Parameters() for name in CONTROLS if name not in chosen}
        return chosen

    def metric_parameters(self) -> dict[str, Parameters]:
        """Return the parameters of every metric by name."""
        return {choice.name: choice.parameters(metrics) for choice in self.metrics}

    def identity(self) -> dict[str, Any]:
        """Return the part of the job on which the results depend, explainers and metrics apart.

        The place and the speed of the computation do not belong to it.
        """
        return self.model_dump(mode="json", include={"name", "target", "seed", "dataset", "model", "compute"})

    @property
    def targets_per_image(self) -> int:
        """Number of maps per image and explainer."""
        return self.target.top if isinstance(self.target, TopTargets) else 1


def _checked(choices: list[Choice], registry: Registry[Any]) -> list[Choice]:
    """Raise ValueError if a name or a parameter is unknown, or if a name occurs twice."""
    for position, choice in enumerate(choices):
        choice.parameters(registry)
        if choice.name in [earlier.name for earlier in choices[:position]]:
            raise ValueError(f"{registry.kind} {choice.name} is named twice; name it once")
    return choices


def _located(choice: Choice, info: ValidationInfo) -> Choice:
    """Return the choice with absolute paths; paths in the job are relative to its folder."""
    fields = explainers.get(choice.name).Parameters.model_fields
    given = choice.model_extra or {}
    paths = {
        key: str(_anchored(Path(value), info))
        for key, value in given.items()
        if key in fields and _is_path(fields[key].annotation) and not str(value).startswith(REGISTERED)
    }
    return choice.model_copy(update=paths)


def _is_path(annotation: Any) -> bool:
    """Whether a parameter's type is a path, or a path or None."""
    return annotation is Path or Path in get_args(annotation)


JobType = TypeVar("JobType", bound=Located)


def read_job(path: Path, kind: type[JobType], store: Path | None = None) -> JobType:
    """Read a job from a TOML file; relative paths start at the folder of the file.

    Parameters
    ----------
    path
        The TOML file.
    kind
        Class of the job.
    store
        Place of the results, which replaces the file's own. A relative path starts at the working directory.

    Raises
    ------
    JobError
        If the file cannot be read or is not a valid job; the message is one line.
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
        raise JobError(f"{path}: {complaints(error, UNKNOWN)}") from error


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder at which relative paths start: that of the job file, or the working directory."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder


def _anchored(path: Path, info: ValidationInfo) -> Path:
    """Return a path as an absolute one; an address on S3 stays as it is."""
    # Unlike Path.resolve, normpath keeps symbolic links.
    return path if is_remote(path) else Path(os.path.normpath(folder_of(info) / path.expanduser()))
