"""The training loop of P-TAME's head: data, checkpoints and validation, in one process or one of several.

This module does not know Prefect or MLflow. It reports by events, which the flow passes on.
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
from explainers.models.ptame_head import Head, HeadConfig, normalisation_of, save_head
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import DatasetSpec
from storage.errors import FloodlitError
from storage.files import UnreadableError, regular, replacing
from storage.training import TrainingFolder
from tasks.training.data import Crops, Order, UnusableImagesError, loader
from tasks.training.loss import Losses
from tasks.training.optimisation import Training, TrainingSettings, new_head
from tasks.training.validation import validate


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a process needs to train. All parts can be sent to another process.

    Attributes
    ----------
    folder
        Where the checkpoint and the head are written.
    model, auxiliary
        The classifier f that is to be explained, and the auxiliary network g that the head reads.
    taps
        The modules of g that the head reads. None: those known for its architecture.
    dataset, geometry, input_size
        The images, the keyword arguments of :func:`storage.datasets.geometry.prepare_image`, and (H, W) of
        the inputs.
    order
        Which images train in which step, and which are held out for validation.
    settings
        Steps, loss weights, precision and seed.
    accumulate
        Into how many equal parts a step's images are split, which are passed one after the other.
    flip
        Whether half of the images are flipped left to right.
    workers
        Processes that decode images ahead.
    numbers
        Steps between events with numbers.
    validation
        Steps between validations.
    checkpoint
        Seconds between checkpoints.
    bands
        What the values of the images become.
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
    bands: Bands = RGB


@dataclass(frozen=True)
class TrainingEvent:
    """What a training reports after a step: numbers of the training or of a validation.

    Attributes
    ----------
    step
        Steps done.
    values
        Numbers by name.
    picture
        Whether a validation has written a new picture of maps.
    problems
        The problems with images that rank 0 drew and replaced, since the last event of the same kind.
    """

    step: int
    values: dict[str, float]
    picture: bool = False
    problems: tuple[str, ...] = ()


Emit = Callable[[TrainingEvent], None]

_TRAINING = "training"  # the key in a checkpoint for the hash of its training's identity
# A training ends if a process had to replace more than this share of its images, and more than this number.
UNUSABLE_SHARE = 0.1
UNUSABLE_IMAGES = 20


class TrainingError(FloodlitError):
    """A training cannot continue; the message is one line that says what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is damaged or belongs to another training; no training leaves such a file behind."""


class StoppedError(TrainingError):
    """The training was asked to stop; its checkpoint is that of the step in the message."""


def device_of(rank: int) -> str:
    """The device of the process with this rank: its own GPU, or the CPU."""
    return f"cuda:{rank}" if torch.cuda.is_available() else "cpu"


def networks(setup: TrainingSetup, device: str) -> tuple[Classifier, Auxiliary]:
    """Load the classifier f and the auxiliary network g.

    Raises
    ------
    ValueError
        In one line that names the key: a network cannot be loaded, or the taps do not exist.
    """
    classifier = load(setup.model, device, setup.input_size)
    auxiliary = Auxiliary(network_of(setup.auxiliary, device), setup.taps, device)
    auxiliary.shapes(setup.input_size, setup.bands.channels)
    return classifier, auxiliary


def fit(setup: TrainingSetup, rank: int, emit: Emit, stopped: Callable[[], bool]) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Parameters
    ----------
    setup
        The training.
    rank
        Which of the processes this is. Rank 0 reports, validates and saves.
    emit
        Receives the events, in rank 0.
    stopped
        Is asked after each step whether to stop.

    Raises
    ------
    StoppedError
        If ``stopped`` returned true; a checkpoint was saved.
    CheckpointError
        If the checkpoint cannot be resumed.
    tasks.training.data.UnusableImagesError
        If too many images cannot be used; the last checkpoint stays.
    tasks.training.optimisation.DivergedError
        If a loss or its gradient is not finite; the last checkpoint stays.
    """
    device = device_of(rank)
    classifier, auxiliary = networks(setup, device)
    head = new_head(classifier, auxiliary, setup.settings.seed)
    module: nn.Module = DistributedDataParallel(head) if setup.order.processes > 1 else head
    training = Training(classifier, auxiliary, module, setup.settings)
    if rank == 0:
        setup.folder.remove_partial_files()  # those of a process that was killed while it wrote
    if setup.folder.checkpoint.exists():
        _resume(training, setup.folder)
    crops = crops_of(setup)
    fitting = _Fitting(setup, rank, emit, stopped, training, head, crops)
    batches = setup.order.batches(training.step, setup.settings.steps, rank)
    with closing(loader(crops, batches, setup.workers)) as drawn:
        for pixels, problems in drawn:
            fitting.step(classifier.inputs_of(pixels.to(device)), problems)
    if rank == 0:
        fitting.finish()


def crops_of(setup: TrainingSetup) -> Crops:
    """The images of a setup, as the networks see them."""
    how = setup.geometry, setup.input_size, setup.order
    return Crops(setup.dataset, *how, flip=setup.flip, bands=setup.bands, folder=setup.folder.root)


def _resume(training: Training, folder: TrainingFolder) -> None:
    path = folder.checkpoint
    # Read outside of ``try``: torch raises OSError for damaged data too, and a disk error is not damage.
    try:
        data = BytesIO(regular(path).read_bytes())
    except UnreadableError as error:
        raise CheckpointError(f"{error}; delete it to begin again") from error
    try:
        state = torch.load(data, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # this says nothing about the checkpoint
    except Exception as error:  # torch's reader raises many kinds of errors for damaged data
        raise CheckpointError(f"{path} cannot be read; restore it, or delete it to begin again") from error
    if not isinstance(state, dict) or state.get(_TRAINING) != folder.hash:
        raise CheckpointError(f"{path} belongs to another training; delete it to begin again")
    training.load_state_dict(state)


class _Fitting:
    """The training of one process: it does a step at a time, and what is due after it."""

    def __init__(
        self,
        setup: TrainingSetup,
        rank: int,
        emit: Emit,
        stopped: Callable[[], bool],
        training: Training,
        head: Head,
        crops: Crops,
    ) -> None:
        self.setup, self.rank, self.emit, self.stopped = setup, rank, emit, stopped
        self.training, self.head, self.crops = training, head, crops
        self.saved = self.reported = time.monotonic()
        self.seen = 0  # images of all processes since the last report
        self.drawn = self.replaced = 0  # images that this process drew, and how many of them were replaced
        self.problems: list[str] = []  # with replaced images, since the last report

    def step(self, pixels: Tensor, problems: Sequence[str]) -> None:
        """Train one step, then report, validate, save and stop as they are due.

        Parameters
        ----------
        pixels
            (B, 3, H, W) in [0, 1].
        problems
            One line per image that was replaced.
        """
        self._refuse_too_many(len(pixels), problems)
        rate = self.training.learning_rate  # read before the step, which advances the schedule
        found = self.training.train(pixels.chunk(self.setup.accumulate))
        self.seen += len(pixels) * self.setup.order.processes
        done, setup = self.training.step, self.setup
        if self.rank == 0 and (done % setup.numbers == 0 or done == setup.settings.steps):
            self._report(found, rate)
        if (
            self.rank == 0
            and setup.order.held_out
            and done % setup.validation == 0
            and done < setup.settings.steps
        ):
            self.validate()
        stop = self._agreed(self.stopped())
        if self.rank == 0 and (stop or time.monotonic() - self.saved > setup.checkpoint):
            self.save()
        if stop:
            raise StoppedError(
                f"stopped after step {done} of {setup.settings.steps}; run the same job again to continue"
            )

    def _refuse_too_many(self, drawn: int, problems: Sequence[str]) -> None:
        self.drawn += drawn
        self.replaced += len(problems)
        self.problems += problems
        if self.replaced > max(UNUSABLE_IMAGES, UNUSABLE_SHARE * self.drawn):
            raise UnusableImagesError(
                f"dataset: {self.replaced} of {self.drawn} images drawn cannot be used, e.g. {problems[-1]}; "
                "repair them, or leave them out and train in another store"
            )

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was asked to stop: all have to, or the others would wait for it forever."""
        if self.setup.order.processes == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.training.classifier.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def _report(self, found: Losses, rate: float) -> None:
        now = time.monotonic()
        values = {
            "loss": float(found.total),
            "loss_ce": float(found.ce),
            "loss_area": float(found.area),
            "loss_tv": float(found.tv),
            "mask_area": float(found.mask_area),
            "learning_rate": rate,
            "images_per_second": self.seen / max(now - self.reported, 1e-9),
            "images_replaced": float(len(self.problems)),
        }
        self.emit(TrainingEvent(self.training.step, values, problems=tuple(self.problems)))
        self.reported, self.seen, self.problems = now, 0, []

    def validate(self) -> None:
        """Report average drop, gain and increase in confidence on held-out images, and draw some maps."""
        values, problems = validate(
            self.training, self.head, self.crops, self.setup.order.held_out, self.setup.folder.picture
        )
        self.emit(TrainingEvent(self.training.step, values, picture=True, problems=problems))
        self.reported, self.seen = time.monotonic(), 0  # the rate is that of training alone

    def save(self) -> None:
        """Write the checkpoint, completely or not at all."""
        with replacing(self.setup.folder.checkpoint) as partial:
            torch.save(self.training.state_dict() | {_TRAINING: self.setup.folder.hash}, partial)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Validate once more, save, and write the head."""
        if self.setup.order.held_out:
            self.validate()
        self.save()
        auxiliary = self.training.auxiliary
        config = config_of(self.setup, self.training.classifier, auxiliary)
        with replacing(self.setup.folder.head) as partial:
            save_head(partial, self.head, config, auxiliary)


def config_of(setup: TrainingSetup, classifier: Classifier, auxiliary: Auxiliary) -> HeadConfig:
    """The description that goes into the head's file; paths in it are relative to the head's folder."""
    changes: dict[str, Any] = {}
    if setup.auxiliary.weights is not None and is_file(setup.auxiliary.weights):
        changes["weights"] = "none"  # the head's file holds these weights itself
    file, _, name = setup.auxiliary.source.rpartition(":")
    if file.endswith(".py"):
        changes["source"] = f"{os.path.relpath(file, setup.folder.root)}:{name}"
    mean, std = normalisation_of(classifier)
    return HeadConfig(
        mean=mean,
        std=std,
        auxiliary=setup.auxiliary.model_copy(update=changes),
        taps=auxiliary.taps,
        auxiliary_fingerprint=auxiliary.fingerprint,
        classifier_fingerprint=classifier.fingerprint,
        num_classes=classifier.num_classes,
        exclusive=classifier.exclusive,
        input_size=classifier.input_size,
        training={"steps": setup.settings.steps, "hash": setup.folder.hash},
    )
