"""The optimisation of P-TAME's head, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.ptame_head import Head
from explainers.numerics.randomness import global_generators
from storage.errors import FloodlitError
from tasks.training.loss import Losses, LossWeights, losses


@dataclass(frozen=True)
class Preset:
    """Loss weights, learning rate and weight decay that belong together."""

    weights: LossWeights
    learning_rate: float
    weight_decay: float


# The released settings, named after the classifier they were found for, and the older settings of TAME
# (ISM 2022). Learning rate and weight decay of the latter are UNKNOWN; those of resnet50 are used (CHOICE).
PRESETS = {
    "resnet50": Preset(LossWeights(0.16143, 0.83857, 0.0, 0.3), 1e-4, 2.4e-4),
    "vgg16": Preset(LossWeights(0.07278, 0.97771, 0.0001, 0.3), 1e-4, 0.133),
    "vit_b_16": Preset(LossWeights(0.13129, 0.83857, 0.0, 0.5), 1e-4, 1.33e-4),
    "tame": Preset(LossWeights(1.5, 2.0, 0.01, 0.3, border=0.3), 1e-4, 2.4e-4),
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a head is trained.

    Attributes
    ----------
    steps
        Steps of the optimiser and of the one-cycle schedule.
    preset
        Loss weights, highest learning rate and weight decay.
    precision
        Precision of the networks' passes. The loss and the weights of the head are float32.
    seed
        Seed of the head's initial weights.
    """

    steps: int
    preset: Preset
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = 0


class DivergedError(FloodlitError):
    """A loss or its gradient is not finite; the head is still as it was before the step."""


def new_head(classifier: Classifier, auxiliary: Auxiliary, seed: int) -> Head:
    """Create an untrained head for these networks; the same seed gives the same weights."""
    shapes = auxiliary.shapes(classifier.input_size, classifier.input_shape[0])
    # Made on the CPU, so that the weights are the same whatever the device is.
    with global_generators(seed, torch.device("cpu")):
        head = Head([channels for channels, _, _ in shapes], classifier.num_classes)
    return head.to(classifier.device)


class Training:
    """The state of a training: the head, AdamW (amsgrad) and a one-cycle schedule, which advance together.

    Parameters
    ----------
    classifier, auxiliary
        The networks f and g. Neither of them learns; gradients flow through f to its input.
    module
        The head, or its wrapper for data-parallel training.
    settings
        How the head is trained.

    Attributes
    ----------
    step
        Steps done.
    """

    def __init__(
        self, classifier: Classifier, auxiliary: Auxiliary, module: nn.Module, settings: TrainingSettings
    ) -> None:
        self.classifier, self.auxiliary, self.module, self.settings = classifier, auxiliary, module, settings
        preset = settings.preset
        self.optimiser = torch.optim.AdamW(
            module.parameters(), preset.learning_rate, weight_decay=preset.weight_decay, amsgrad=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, preset.learning_rate, total_steps=settings.steps
        )
        self.step = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def train(self, batches: Sequence[Tensor]) -> Losses:
        """Train one step on several batches, whose gradients are averaged.

        Parameters
        ----------
        batches
            Pixels (B, 3, H, W) in [0, 1]. Each batch has a loss of its own, so masks are compared within it.

        Returns
        -------
        Losses
            The means over the batches.

        Raises
        ------
        DivergedError
            If a loss or the gradient is not finite; the training is as it was before. Processes that train
            together share the gradient, so all of them stop.
        """
        self.module.train()
        # The forward pass updates the statistics of batch normalisation, which a refused step has to restore.
        statistics = [buffer.clone() for buffer in self.module.buffers()]
        self.optimiser.zero_grad(set_to_none=True)
        found = []
        for pixels in batches:
            one = self._losses(pixels)
            (one.total / len(batches)).backward()  # at once, so that one batch's graph is in memory at a time
            found.append(one)
        parts = ("total", "ce", "area", "tv", "mask_area")
        means = Losses(
            *(torch.stack([getattr(one, part).detach() for one in found]).mean() for part in parts)
        )
        self._check(means.total, statistics)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        return means

    def _check(self, loss: Tensor, statistics: list[Tensor]) -> None:
        """Refuse a loss or gradient that is not finite, and restore the statistics of batch normalisation."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        values = torch.stack([loss, torch.nn.utils.get_total_norm(gradients)]).tolist()
        for what, value in zip(("loss", "gradient"), values, strict=True):
            if not math.isfinite(value):
                for buffer, before in zip(self.module.buffers(), statistics, strict=True):
                    buffer.copy_(before)
                raise DivergedError(
                    f"the {what} of step {self.step} is {value}; lower the learning rate, or train in float32"
                )

    def _losses(self, pixels: Tensor) -> Losses:
        """The losses of one batch: f predicts the targets, and then sees each image under its own mask."""
        classifier = self.classifier
        low = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        with torch.autocast(classifier.device.type, low, enabled=low is not torch.float32):
            with torch.no_grad():
                targets = classifier.logits(pixels).argmax(1)
                features = self.auxiliary.features(classifier.normalised(pixels))
            maps = self.module(features, targets).float().sigmoid()
            own = maps.diagonal().movedim(-1, 0)[:, None]  # (B, 1, h, w)
            masks = F.interpolate(own, classifier.input_size, mode="bilinear", align_corners=False)
            logits = classifier.logits(pixels * masks)  # masked before normalisation, so hidden means black
        log_probability = classifier.log_probability(logits.float())
        return losses(log_probability, targets, maps, self.settings.preset.weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, except for the data."""
        return {
            "step": self.step,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that :meth:`state_dict` returned."""
        self.step = state["step"]
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
