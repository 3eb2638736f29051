"""The job that trains a P-TAME head: it validates the TOML file and defines Prefect's form."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from explainers.models.loading import ModelSpec
from flows.job import Located, Strict
from flows.locations import folder_of
from tasks.training.optimisation import PRESETS, Preset

# Names that MLflow accepts, without quotes: a quote would end the string in a search of MLflow.
REGISTRABLE = r"^[\w. -]*\w[\w. -]*$"


class AuxiliarySpec(ModelSpec):
    """The auxiliary network and the modules at which its features are read."""

    taps: tuple[str, ...] | None = Field(
        None,
        strict=False,  # TOML and JSON have lists
        max_length=100,
        description="names of the modules whose outputs the head reads; by default those that are known for "
        "ResNets, MobileNetV3 and MNASNet",
    )

    @field_validator("class_names", "layer", "resize", "fit", "crop", "channels", "mean", "std")
    @classmethod
    def _inputs_are_the_classifiers(cls, value: object) -> object:
        if value is not None:
            raise ValueError(
                "the auxiliary network gets the classifier's inputs and is read at its taps; leave it out"
            )
        return value

    @property
    def model(self) -> ModelSpec:
        """The network without its taps."""
        return ModelSpec.model_validate(self.model_dump(exclude={"taps"}))


class Loss(Strict):
    """Weights of the loss and settings of the optimiser; a key that is left out has the preset's value."""

    preset: Literal["resnet50", "vgg16", "vit_b_16", "tame"] = Field(
        "resnet50",
        description="released settings, named after the classifier for which they were found; tame: the "
        "older settings of TAME (2022)",
    )
    ce: float | None = Field(None, ge=0, le=1e6, description="weight of the cross-entropy in the loss")
    area: float | None = Field(None, ge=0, le=1e6, description="weight of the mask's area in the loss")
    tv: float | None = Field(
        None, ge=0, le=1e6, description="weight of the mask's total variation in the loss"
    )
    power: float | None = Field(
        None, gt=0, le=1000, description="exponent of the mask values, which lie in (0, 1), in the area"
    )
    border: float | None = Field(
        None, ge=0, le=1e6, description="weight of the mask's edges within the total variation"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1000, description="highest learning rate of the one-cycle schedule"
    )
    weight_decay: float | None = Field(
        None, ge=0, le=1000, description="weight decay of the optimiser, AdamW"
    )

    def settings(self) -> Preset:
        """Return the preset, with the values of the given keys in place of its own."""
        preset = PRESETS[self.preset]
        parts = ("ce", "area", "tv", "power", "border")
        weights: dict[str, Any] = {p: getattr(self, p) for p in parts if getattr(self, p) is not None}
        rest = {
            k: getattr(self, k) for k in ("learning_rate", "weight_decay") if getattr(self, k) is not None
        }
        return replace(preset, weights=replace(preset.weights, **weights), **rest)


class Watch(Strict):
    """Intervals of reports and checkpoints, and the loading of images; they never change the head."""

    numbers: int = Field(
        10, ge=1, le=1_000_000_000, description="steps between two values of a curve in MLflow"
    )
    validation: int = Field(
        500, ge=1, le=1_000_000_000, description="steps between two validations on the held-out images"
    )
    checkpoint: float = Field(3, gt=0, le=100_000, description="minutes between two checkpoints")
    workers: int = Field(
        0, ge=0, le=1000, description="extra processes, per training process, that decode images in advance"
    )


class TrainJob(Located):
    """A head for one classifier, trained on one dataset without its labels."""

    auxiliary: AuxiliarySpec = Field(
        default_factory=lambda: AuxiliarySpec(source="torchvision", name="resnet18", weights="DEFAULT"),
        description="the frozen network whose features the head reads",
    )
    loss: Loss = Field(default_factory=Loss, description="weights of the loss and settings of the optimiser")
    steps: int | None = Field(
        None,
        ge=2,
        le=1_000_000_000,
        description="number of optimiser steps; by default the number that the epochs take",
    )
    epochs: float = Field(
        1, gt=0, le=1_000_000, description="passes over the training images; not used if steps are given"
    )
    batch: int = Field(
        32,
        ge=2,
        le=100_000,
        description="images per step and process; the loss compares the images of a batch",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=100_000,
        description="equal parts of a batch, processed one after another with averaged gradients; the loss "
        "then compares the images of a part",
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="precision of the networks' forward passes; the loss and the head's weights are float32",
    )
    flip: bool = Field(True, description="flip each training image left to right with probability 0.5")
    held_out: int = Field(
        100,
        ge=0,
        le=100_000_000,
        description="number of images for validation, spread evenly over the dataset",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="processes that train one head together; by default one per GPU, and one without a GPU",
    )
    watch: Watch = Field(
        default_factory=Watch, description="intervals of reports and checkpoints; they never change the head"
    )
    register_as: str | None = Field(
        None,
        pattern=REGISTRABLE,
        max_length=250,
        description="name in MLflow's model registry; by default the job's name",
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
                f"accumulate: {self.batch} images cannot be divided into {self.accumulate} equal parts of at "
                "least two images"
            )
        return self

    @model_validator(mode="after")
    def _head_can_be_registered(self) -> TrainJob:
        if self.register_as is None and not re.fullmatch(REGISTRABLE, self.name):
            raise ValueError(
                f"name: {self.name!r} is not a valid name in MLflow's model registry, which allows letters, "
                "digits, spaces and . _ -; change it, or set register_as"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return the part of the job on which the head's weights depend.

        The store, the tracking and the intervals of reports do not belong to it.
        """
        # The number of processes is left out here: the flow adds the number that was chosen.
        apart = {"store", "tracking", "watch", "register_as", "processes"}
        return self.model_dump(mode="json", exclude=apart)
