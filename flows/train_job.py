"""The job of training P-TAME's head: validates the TOML file and draws the Prefect form."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from explainers.models.loading import ModelSpec
from flows.job import Located, Strict, folder_of
from tasks.training.optimisation import PRESETS, Preset

# What MLflow takes, without the quotes that would end its searches' strings.
REGISTRABLE = r"^[\w. -]*\w[\w. -]*$"


class AuxiliarySpec(ModelSpec):
    """The network that is read, and where."""

    taps: tuple[str, ...] | None = Field(
        None, description="modules whose outputs are read; known for ResNets, MobileNetV3 and MNASNet"
    )

    @field_validator("layer", "resize", "crop", "mean", "std")
    @classmethod
    def _inputs_are_the_classifiers(cls, value: object) -> object:
        if value is not None:
            raise ValueError("the auxiliary network reads the classifier's inputs, at its taps; leave it out")
        return value

    @property
    def model(self) -> ModelSpec:
        """The network alone."""
        return ModelSpec.model_validate(self.model_dump(exclude={"taps"}))


class Loss(Strict):
    """What the loss weighs; a key that is left out is the preset's."""

    model_config = ConfigDict(allow_inf_nan=False)

    preset: Literal["resnet50", "vgg16", "vit_b_16", "tame"] = Field(
        "resnet50", description="released settings, by the classifier they were found for"
    )
    ce: float | None = Field(None, ge=0, description="weight of the cross-entropy")
    area: float | None = Field(None, ge=0, description="weight of the mask's area")
    tv: float | None = Field(None, ge=0, description="weight of the total variation")
    power: float | None = Field(None, gt=0, description="of the area")
    border: float | None = Field(None, ge=0, description="weight of the edges in the total variation")
    learning_rate: float | None = Field(None, gt=0, description="the highest of the cycle")
    weight_decay: float | None = Field(None, ge=0)

    def settings(self) -> Preset:
        """The preset with these values in their place."""
        preset = PRESETS[self.preset]
        parts = ("ce", "area", "tv", "power", "border")
        weights: dict[str, Any] = {p: getattr(self, p) for p in parts if getattr(self, p) is not None}
        rest = {
            k: getattr(self, k) for k in ("learning_rate", "weight_decay") if getattr(self, k) is not None
        }
        return replace(preset, weights=replace(preset.weights, **weights), **rest)


class Watch(Strict):
    """How often something is told or saved; never changes the head."""

    numbers: int = Field(10, ge=1, description="steps between numbers in MLflow")
    validation: int = Field(500, ge=1, description="steps between validations on the held-out images")
    checkpoint: float = Field(3, gt=0, description="minutes between checkpoints")
    workers: int = Field(0, ge=0, description="processes that decode images ahead; 0: none")


class TrainJob(Located):
    """A head for one classifier, trained on one dataset without its labels."""

    model_config = ConfigDict(allow_inf_nan=False)

    auxiliary: AuxiliarySpec = Field(
        default_factory=lambda: AuxiliarySpec(source="torchvision", name="resnet18", weights="DEFAULT"),
        description="the frozen network whose features the head reads",
    )
    loss: Loss = Field(default_factory=Loss)
    steps: int | None = Field(
        None, ge=2, description="of the optimiser; by default as many as the epochs take"
    )
    epochs: float = Field(1, gt=0, description="passes over the training images, where no steps are given")
    batch: int = Field(32, ge=2, description="images a step and process; the loss compares them")
    accumulate: int = Field(1, ge=1, description="equal parts of a batch that are passed one after another")
    precision: Literal["float32", "bf16"] = Field("float32", description="of the networks' passes")
    flip: bool = Field(True, description="flip images left to right half of the time")
    held_out: int = Field(100, ge=0, description="images for validation, spread evenly over the dataset")
    processes: int | None = Field(None, ge=1, description="that train together; by default one a GPU")
    watch: Watch = Field(default_factory=Watch)
    register_as: str | None = Field(
        None, pattern=REGISTRABLE, description="name in MLflow's model registry; by default the job's name"
    )

    @field_validator("auxiliary")
    @classmethod
    def _auxiliary_paths_are_absolute(cls, auxiliary: AuxiliarySpec, info: ValidationInfo) -> AuxiliarySpec:
        located = auxiliary.model.relative_to(folder_of(info))
        return AuxiliarySpec.model_validate(located.model_dump() | {"taps": auxiliary.taps})

    @model_validator(mode="after")
    def _parts_are_equal(self) -> TrainJob:
        if self.batch % self.accumulate or self.batch // self.accumulate < 2:
            raise ValueError(
                f"accumulate: {self.batch} images do not make {self.accumulate} equal parts of two or more"
            )
        return self

    @model_validator(mode="after")
    def _head_can_be_registered(self) -> TrainJob:
        if self.register_as is None and not re.fullmatch(REGISTRABLE, self.name):
            raise ValueError(
                f"name: {self.name!r} is no name for MLflow's model registry, which takes letters, digits, "
                "spaces and . _ -; change it, or set register_as"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What makes the head what it is; where it is kept and how it is watched is left out."""
        apart = {"store", "tracking", "watch", "register_as", "processes"}
        return self.model_dump(mode="json", exclude=apart)
