"""The job: one pydantic model that validates the TOML file and defines Prefect's form."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from explainers.base import Parameters
from explainers.control_names import CONTROLS
from explainers.models.compute import Compute
from explainers.models.loading import ModelSpec
from explainers.models.model_spec import MOST_CHANNELS
from explainers.registry import MethodRegistry, explainers
from flows.locations import anchored, lies_in, located_dataset, located_model, refuse_store
from flows.values import LARGEST, refuse_values
from storage.datasets.spec import DatasetSpec
from storage.errors import FloodlitError
from storage.places import Place, is_remote
from tasks.findings.examine import PASSES
from tasks.metrics.registry import metrics

MANY = 1000  # explainers or metrics of one job
FEW = 8  # columns that fit into a terminal
REGISTERED = "models:"  # the beginning of MLflow's addresses of registered models
Band = Annotated[int, Field(ge=0, lt=MOST_CHANNELS)]
ClassIndex = Annotated[int, Field(ge=0, le=100_000_000)]  # no network has as many classes


class JobError(FloodlitError, ValueError):
    """The job cannot run; the message is one line that names the key and the choices."""

    exit_code = 2


class Strict(BaseModel):
    """Base of the job's tables: values cannot change, and an unknown key is an error.

    A value has to be of the key's own type: neither "16" nor true nor 16.0 is the number 16.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a text may be a password
    )


class Choice(BaseModel):
    """One explainer or metric; every key besides ``name`` is one of its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field(
        min_length=1,
        max_length=200,
        description="name that `floodlit explainers` or `floodlit metrics` lists, or package.module:Name",
    )

    def parameters(self, registry: MethodRegistry[Any]) -> Parameters:
        """Return the keys as an object of the parameter class of the named explainer or metric.

        Raises
        ------
        ValueError
            If the name or a key is unknown, or a value is out of range.
        """
        parameters: Parameters = registry.parameters(self.name, self.model_extra or {})
        return parameters


class ExplainerChoice(Choice):
    """One explainer, which the run may call by a label; every other key is one of its parameters."""

    label: str | None = Field(
        None,
        pattern=r"^\w[\w.+-]*$",
        max_length=100,
        description="what the run calls the explainer, by default its name; needed if one is named twice",
    )

    @property
    def called(self) -> str:
        """What the run calls the explainer."""
        return self.label or self.name


class FindingsChoice(Strict):
    """Look for findings about the model with the maps of one explainer."""

    explainer: str = Field(
        min_length=1, max_length=200, description="what the job calls the explainer: its label, or its name"
    )
    passes: int = Field(
        PASSES,
        ge=0,
        le=10_000_000,
        description="passes through the network per class, at most; what is suspected most strongly is "
        "tested first, and with 0 nothing is tested",
    )


class TopTargets(Strict):
    """Explain the ``top`` most probable classes of each image, with one map per class."""

    top: StrictInt = Field(ge=1, le=1000, description="number of classes, and so of maps, per image")


class LabelTargets(Strict):
    """Explain the labels of each image, with one map per label."""

    labels: StrictInt = Field(
        ge=1, le=1000, description="largest number of labels, and so of maps, per image: the first ones"
    )


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
        le=10_000,
        description="number of worker processes; by default the number of cores, at most 4 (local), or the "
        'number of GPUs (cuda); required for kind = "class"',
    )
    address: str | None = Field(
        None, description='address of the scheduler, tcp://host:port or tls://host:port, for kind = "address"'
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
    def _keys_belong_to_their_kinds(self) -> Self:
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

    images: int = Field(16, ge=1, le=100_000, description="number of images per step")
    forwards: int = Field(
        64, ge=1, le=1_000_000, description="number of forward passes per perturbation step"
    )
    shard: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="number of images per shard; by default chosen from the size of the job",
    )


class Located(Strict):
    """Keys of every job: one dataset, one model, and the place of the results."""

    name: str = Field(min_length=1, max_length=250, description="name of the run in Prefect and MLflow")
    store: Place = Field(description="place of the results: a folder, or s3://bucket/prefix")
    seed: int = Field(
        0,
        ge=0,
        le=LARGEST,
        description="seed of the random numbers that explainers, metrics, intervals and trainings draw",
    )
    dataset: DatasetSpec = Field(description="the images, texts or arrays")
    model: ModelSpec = Field(description="the classifier that is explained")
    tracking: str | None = Field(
        None, min_length=1, description="MLflow tracking URI; by default mlflow.db beside the store"
    )

    @model_validator(mode="before")
    @classmethod
    def _values_can_be_kept(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            refuse_values(raw)
        return raw

    @field_validator("store")
    @classmethod
    def _store_is_absolute(cls, store: Path, info: ValidationInfo) -> Path:
        found = anchored(store, info)
        refuse_store(found)
        return found

    @model_validator(mode="after")
    def _stores_on_s3_are_tracked_elsewhere(self) -> Self:
        if is_remote(self.store) and "/" not in str(self.store).removeprefix("s3://").rstrip("/"):
            raise ValueError("store: a bucket alone is not enough; give s3://bucket/prefix")
        if is_remote(self.store) and not (self.tracking or "").startswith(("http:", "https:", "sqlite:")):
            raise ValueError(
                "tracking: a store on S3 needs the address of MLflow: http://host:5000, or sqlite:///FILE"
            )
        return self

    @model_validator(mode="after")
    def _database_lies_beside_the_store(self) -> Self:
        # The database's address would be read as that of another file.
        if self.tracking is None and set("?%") & set(str(self.store.parent)):
            raise ValueError(
                f"store: MLflow cannot keep mlflow.db in {self.store.parent}, whose name has a ? or %; "
                "choose another folder, or set tracking"
            )
        return self

    _dataset_paths_are_absolute = field_validator("dataset")(located_dataset)
    _model_paths_are_absolute = field_validator("model")(located_model)

    @model_validator(mode="after")
    def _results_are_no_data(self) -> Self:
        folders = [getattr(self.dataset, key) for key in self.dataset.scanned]
        if any(lies_in(self.store, folder) for folder in folders if folder is not None):
            raise ValueError(
                "store: lies in the folder of the dataset, which would read the run's pictures as images; "
                "choose a folder outside it"
            )
        return self


class Job(Located):
    """A job: one dataset, one model, explainers of the model, and metrics that score the explainers."""

    target: Literal["predicted", "label", "labels"] | ClassIndex | TopTargets | LabelTargets = Field(
        "predicted",
        description='class that is explained: "predicted", "label", a class index, {top = k} for the k most '
        'probable classes, "labels" for every label of an image, or {labels = k} for its first k labels',
    )
    explainers: list[ExplainerChoice] = Field(
        min_length=1,
        max_length=MANY,
        description="explainers; every key besides `name` and `label` is a parameter of the explainer",
    )
    controls: bool = Field(True, description=f"add the controls {', '.join(CONTROLS)}")
    metrics: list[Choice] = Field(
        min_length=1,
        max_length=MANY,
        description="metrics; every key besides `name` is a parameter of the metric",
    )
    findings: list[FindingsChoice] = Field(
        default_factory=list,
        exclude_if=operator.not_,  # so that runs without them stay as they were
        max_length=MANY,
        description="explainers with whose maps the job looks for what is wrong with the model",
    )
    headline: tuple[str, ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        max_length=FEW,
        description="columns of the metrics that tables and the report show first; by default one each of "
        "faithfulness, localisation, sanity and sparseness, as far as the metrics have them",
    )
    batch: Batching = Field(
        default_factory=Batching,
        description="batch sizes; they bound memory and never change a result beyond float tolerance",
    )
    compute: Compute = Field(
        default_factory=Compute, description="precision and compilation of the forward passes"
    )
    cluster: Cluster = Field(default_factory=Cluster, description="the workers that run the job")
    shown_bands: tuple[Band, ...] | None = Field(
        None,
        strict=False,
        description="bands of images that pictures show, counted from 0: one in grey, or three as red, green "
        "and blue; by default the first three, or the first if there are fewer. Bands of more than 8 bits "
        "are stretched from their 2nd to their 98th percentile in each image",
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest share of the explainers' steps that may fail in a job that succeeds",
    )
    keep_activations: bool = Field(
        False, description="keep activations.zarr after the job; by default it is deleted"
    )

    @field_validator("target", mode="wrap")
    @classmethod
    def _target_is_a_class(cls, given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(given)
        except ValidationError as error:  # which has one complaint for every kind of target
            known = given is None or isinstance(given, bool | int | float)
            raise ValueError(
                f'{json.dumps(given) if known else "this"} is no class; write "predicted", "label", a class '
                'index such as 281, {top = 3}, "labels" or {labels = 3}, at most 1000'
            ) from error

    @field_validator("headline")
    @classmethod
    def _columns_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        _refuse_twice(list(names or ()), "column", "name it once")
        return names

    @field_validator("shown_bands")
    @classmethod
    def _grey_or_colours(cls, bands: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if bands is not None and len(bands) not in {1, 3}:
            raise ValueError(f"give one band, or three as red, green and blue, and not {len(bands)}")
        return bands

    @field_validator("explainers")
    @classmethod
    def _explainers_exist(cls, choices: list[ExplainerChoice], info: ValidationInfo) -> list[ExplainerChoice]:
        located = [_located(choice, info) for choice in choices]
        for choice in located:
            choice.parameters(explainers)
            if choice.label not in {None, choice.name} and choice.label in explainers.names():
                raise ValueError(f"label: {choice.label} is the name of an explainer; choose another label")
        _refuse_twice([choice.called for choice in located], "explainer", "give each a label of its own")
        return located

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, choices: list[Choice]) -> list[Choice]:
        for choice in choices:
            choice.parameters(metrics)
        _refuse_twice([choice.name for choice in choices], "metric", "name it once")
        return choices

    @model_validator(mode="after")
    def _findings_are_of_explainers(self) -> Self:
        _refuse_twice([choice.explainer for choice in self.findings], "findings: explainer", "name it once")
        there = self.explainer_parameters()
        for choice in self.findings:
            if choice.explainer not in there:
                raise ValueError(
                    f"findings.explainer: {choice.explainer} is no explainer of the job; choose from "
                    f"{', '.join(there)}"
                )
        return self

    def explainer_parameters(self) -> dict[str, Parameters]:
        """Return the parameters of every explainer, including the controls, by what the run calls it."""
        chosen = {choice.called: choice.parameters(explainers) for choice in self.explainers}
        if self.controls:
            chosen |= {name: explainers.get(name).Parameters() for name in CONTROLS if name not in chosen}
        return chosen

    def explainer_names(self) -> dict[str, str]:
        """Return the own name of every explainer, including the controls, by what the run calls it."""
        own = {choice.called: choice.name for choice in self.explainers}
        return {called: own.get(called, called) for called in self.explainer_parameters()}

    def metric_parameters(self) -> dict[str, Parameters]:
        """Return the parameters of every metric by name."""
        return {choice.name: choice.parameters(metrics) for choice in self.metrics}

    def identity(self) -> dict[str, Any]:
        """Return the part of the job on which the results depend, explainers and metrics apart.

        The place and the speed of the computation do not belong to it.
        """
        return self.model_dump(mode="json", include={"name", "target", "seed", "dataset", "model", "compute"})


def _refuse_twice(names: list[str], kind: str, advice: str) -> None:
    """Raise ValueError if a name occurs twice."""
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"{kind} {name} is named twice; {advice}")


def _located(choice: ExplainerChoice, info: ValidationInfo) -> ExplainerChoice:
    """Return the choice with absolute paths; paths in the job are relative to its folder."""
    fields = explainers.get(choice.name).Parameters.model_fields
    given = choice.model_extra or {}
    paths = {
        key: str(anchored(Path(value), info))
        for key, value in given.items()
        if key in fields
        and _is_path(fields[key].annotation)
        and isinstance(value, str)  # any other value is refused with the other parameters
        and not value.startswith((REGISTERED, "s3:/"))
    }
    return choice.model_copy(update=paths)


def _is_path(annotation: Any) -> bool:
    """Whether a parameter's type is a path, or a path or None."""
    return annotation is Path or Path in get_args(annotation)
