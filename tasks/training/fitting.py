"""Training P-TAME's head on a dataset: data, checkpoints, validation, as one process or as one of several.

This knows no Prefect and no MLflow: what happens is told by events, and the flow passes them on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec, load, network_of
from explainers.models.model_spec import is_file
from explainers.ptame import Head, HeadConfig, normalisation_of, save_head
from storage.datasets.opening import DatasetSpec
from storage.files import replacing
from storage.training import TrainingFolder
from tasks.training.data import Crops, Order, UnusableImagesError, loader
from tasks.training.loss import Losses
from tasks.training.optimisation import Training, TrainingSettings, new_head
from tasks.training.validation import validate


@dataclass(frozen=True)
class Plan:
    """All that a process needs to train; every part can be sent to another process.

    Attributes
    ----------
    folder
        Where checkpoints and the head go.
    model, auxiliary, taps
        f, g, and the modules of g that are read; None: known ones.
    dataset, geometry, input_size
        The images, how they become inputs, and the inputs' (H, W).
    order
        Which images train in which step, and which are for validation.
    settings
        Steps, loss weights, precision, seed.
    accumulate
        Equal parts of a step's images that are passed one after the other.
    flip
        Whether images are flipped left to right half of the time.
    workers
        Processes that decode ahead.
    numbers, validation, checkpoint
        Steps between numbers, steps between validations, seconds between checkpoints.
    """

    folder: TrainingFolder
    model: ModelSpec
    auxiliary: ModelSpec
    taps: tuple[str, ...] | None
    dataset: DatasetSpec
    geometry: dict[str, Any]
    input_size: tuple[int, int]
    order: Order
    settings: TrainingSettings
    accumulate: int
    flip: bool
    workers: int
    numbers: int
    validation: int
    checkpoint: float


@dataclass(frozen=True)
class Event:
    """What happened.

    Attributes
    ----------
    step
        Steps done.
    values
        Numbers by name.
    picture
        Whether there is a new picture of maps.
    problems
        What was wrong with images that others stood in for where rank 0 drew them, since the event of the
        same kind before.
    """

    step: int
    values: dict[str, float]
    picture: bool = False
    problems: tuple[str, ...] = ()


Emit = Callable[[Event], None]

_TRAINING = "training"  # the key in a checkpoint of what its folder's identity was
UNUSABLE_SHARE = 0.1  # of the images drawn by a process; more of them, and training is refused, ...
UNUSABLE_IMAGES = 20  # ... but not before so many


class TrainingError(RuntimeError):
    """Why a training does not go on, in one line that says what to do."""


class CheckpointError(TrainingError):
    """A checkpoint that is damaged, or another training's; a training leaves neither behind."""


class StoppedError(TrainingError):
    """Somebody asked the training to stop; its checkpoint is that of the step named."""


def device_of(rank: int) -> str:
    """Where the process of that rank computes."""
    return f"cuda:{rank}" if torch.cuda.is_available() else "cpu"


def networks(plan: Plan, device: str) -> tuple[Classifier, Auxiliary]:
    """f and g.

    Raises
    ------
    ValueError
        In one line that names the key: a network that is not there, taps that are none.
    """
    classifier = load(plan.model, device, plan.input_size)
    auxiliary = Auxiliary(network_of(plan.auxiliary, device), plan.taps, device)
    auxiliary.shapes(plan.input_size)
    return classifier, auxiliary


def fit(plan: Plan, rank: int, emit: Emit, stopped: Callable[[], bool]) -> None:
    """Train to the end, from the last checkpoint on; rank 0 tells, validates and saves.

    Raises
    ------
    StoppedError
        If ``stopped`` said so; a checkpoint was saved.
    CheckpointError
        If the checkpoint cannot be gone on from.
    tasks.training.data.UnusableImagesError
        If too many images cannot be used; the last checkpoint stays.
    tasks.training.optimisation.DivergedError
        If the loss is no number; the last checkpoint stays.
    """
    device = device_of(rank)
    classifier, auxiliary = networks(plan, device)
    head = new_head(classifier, auxiliary, plan.settings.seed)
    module: nn.Module = DistributedDataParallel(head) if plan.order.processes > 1 else head
    training = Training(classifier, auxiliary, module, plan.settings)
    if rank == 0:
        plan.folder.remove_partial_files()
    if plan.folder.checkpoint.exists():
        _resume(training, plan.folder)
    crops = crops_of(plan)
    run = _Run(plan, rank, emit, stopped, training, head, crops)
    batches = plan.order.batches(training.step, plan.settings.steps, rank)
    with closing(loader(crops, batches, plan.workers)) as drawn:
        for pixels, problems in drawn:
            run.step(pixels.to(device).float() / 255, problems)
    if rank == 0:
        run.finish()


def crops_of(plan: Plan) -> Crops:
    """The images of the plan, as the networks see them."""
    return Crops(plan.dataset, plan.geometry, plan.input_size, plan.order, flip=plan.flip)


def _resume(training: Training, folder: TrainingFolder) -> None:
    path = folder.checkpoint
    data = BytesIO(path.read_bytes())  # apart: of damaged data torch raises an OSError as well
    try:
        state = torch.load(data, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # which say nothing of the data
    except Exception as error:  # torch's reader raises almost anything at damaged data
        raise CheckpointError(f"{path} cannot be read; restore it, or delete it to begin again") from error
    if not isinstance(state, dict) or state.get(_TRAINING) != folder.hash:
        raise CheckpointError(f"{path} is another training's; delete it to begin again")
    training.load_state_dict(state)


class _Run:
    """One process's training as it goes on."""

    def __init__(
        self,
        plan: Plan,
        rank: int,
        emit: Emit,
        stopped: Callable[[], bool],
        training: Training,
        head: Head,
        crops: Crops,
    ) -> None:
        self.plan, self.rank, self.emit, self.stopped = plan, rank, emit, stopped
        self.training, self.head, self.crops = training, head, crops
        self.saved = self.told = time.monotonic()
        self.seen = 0  # images of all processes since the last numbers
        self.drawn = self.replaced = 0  # images of this process, and those that others stood in for
        self.problems: list[str] = []  # with the latter, since the last numbers

    def step(self, pixels: Tensor, problems: Sequence[str]) -> None:
        """One step, and what is due after it."""
        self._refuse_too_many(len(pixels), problems)
        rate = self.training.learning_rate
        found = self.training.train(pixels.chunk(self.plan.accumulate))
        self.seen += len(pixels) * self.plan.order.processes
        done, plan = self.training.step, self.plan
        if self.rank == 0 and (done % plan.numbers == 0 or done == plan.settings.steps):
            self._tell(found, rate)
        if (
            self.rank == 0
            and plan.order.held_out
            and done % plan.validation == 0
            and done < plan.settings.steps
        ):
            self.validate()
        stop = self._agreed(self.stopped())
        if self.rank == 0 and (stop or time.monotonic() - self.saved > plan.checkpoint):
            self.save()
        if stop:
            raise StoppedError(f"stopped after step {done} of {plan.settings.steps}")

    def _refuse_too_many(self, drawn: int, problems: Sequence[str]) -> None:
        self.drawn += drawn
        self.replaced += len(problems)
        self.problems += problems
        if self.replaced > max(UNUSABLE_IMAGES, UNUSABLE_SHARE * self.drawn):
            raise UnusableImagesError(
                f"dataset: {self.replaced} of {self.drawn} images drawn cannot be used, e.g. {problems[-1]}; "
                "mend them, or leave them out and train in another store"
            )

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was asked to stop: those that go on would wait for it for ever."""
        if self.plan.order.processes == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.training.classifier.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def _tell(self, found: Losses, rate: float) -> None:
        now = time.monotonic()
        values = {
            "loss": float(found.total),
            "loss_ce": float(found.ce),
            "loss_area": float(found.area),
            "loss_tv": float(found.tv),
            "mask_area": float(found.mask_area),
            "learning_rate": rate,
            "images_per_second": self.seen / max(now - self.told, 1e-9),
            "images_replaced": float(len(self.problems)),
        }
        self.emit(Event(self.training.step, values, problems=tuple(self.problems)))
        self.told, self.seen, self.problems = now, 0, []

    def validate(self) -> None:
        """Average drop and increase in confidence on the held-out images, and a picture of some maps."""
        values, problems = validate(
            self.training, self.head, self.crops, self.plan.order.held_out, self.plan.folder.picture
        )
        self.emit(Event(self.training.step, values, picture=True, problems=problems))
        self.told, self.seen = time.monotonic(), 0

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        with replacing(self.plan.folder.checkpoint) as partial:
            torch.save(self.training.state_dict() | {_TRAINING: self.plan.folder.hash}, partial)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Validate once more, and write the head."""
        if self.plan.order.held_out:
            self.validate()
        self.save()
        auxiliary = self.training.auxiliary
        config = config_of(self.plan, self.training.classifier, auxiliary)
        with replacing(self.plan.folder.head) as partial:
            save_head(partial, self.head, config, auxiliary)


def config_of(plan: Plan, classifier: Classifier, auxiliary: Auxiliary) -> HeadConfig:
    """What is told of the product; files that it names are found from its own folder."""
    changes: dict[str, Any] = {}
    if plan.auxiliary.weights is not None and is_file(plan.auxiliary.weights):
        changes["weights"] = "none"  # they go into the head's file
    file, _, name = plan.auxiliary.source.rpartition(":")
    if file.endswith(".py"):
        changes["source"] = f"{os.path.relpath(file, plan.folder.root)}:{name}"
    mean, std = normalisation_of(classifier)
    return HeadConfig(
        mean=mean,
        std=std,
        auxiliary=plan.auxiliary.model_copy(update=changes),
        taps=auxiliary.taps,
        auxiliary_fingerprint=auxiliary.fingerprint,
        classifier_fingerprint=classifier.fingerprint,
        num_classes=classifier.num_classes,
        input_size=classifier.input_size,
        training={"steps": plan.settings.steps, "hash": plan.folder.hash},
    )
