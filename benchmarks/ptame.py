"""Measures what P-TAME costs: explaining over the passes of both networks, a training step over its floor.

    python -P benchmarks/ptame.py [--classifier mobilenet_v2] [--auxiliary resnet18] [--batch 8] [--rounds 5]
        [--threads 1]

The networks are torchvision's with random weights at 224x224 pixels. Explaining is the prediction of the
classifier and the head's map of the predicted class; it is divided by one forward pass of each network. A
training step is divided by its floor: two forward passes of the classifier, one for its class and one under
the mask; one backward pass to the mask; one pass of the auxiliary network; and the head forward and backward
on its features. Every round measures both again. The printed numbers are medians over the rounds of the ratio
within a round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision import models

from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.ptame_head import maps_of
from tasks.training.optimisation import PRESETS, Training, TrainingSettings, new_head

SIZE = 224


def seconds(run: Callable[[], object]) -> float:
    """The duration of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def explaining(training: Training, pixels: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: explaining, and one pass of each network."""
    classifier, auxiliary = training.classifier, training.auxiliary

    @torch.inference_mode()
    def explain() -> Tensor:
        targets = classifier.logits(pixels).argmax(1)
        return maps_of(training.module.eval(), auxiliary, classifier, pixels, targets)

    @torch.inference_mode()
    def passes() -> None:
        classifier.logits(pixels)
        auxiliary.network(classifier.normalised(pixels))

    return explain, passes


def training_step(training: Training, pixels: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: a training step, and its floor."""
    classifier, auxiliary = training.classifier, training.auxiliary

    def floor() -> None:
        with torch.no_grad():
            targets = classifier.logits(pixels).argmax(1)
            features = auxiliary.features(classifier.normalised(pixels))
        training.module.train()(features, targets).sum().backward()
        mask = torch.rand(len(pixels), 1, SIZE, SIZE, requires_grad=True)
        classifier.logits(pixels * mask).sum().backward()

    return lambda: training.train([pixels]), floor


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", default="mobilenet_v2")
    parser.add_argument("--auxiliary", default="resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    classifier = Classifier(models.get_model(chosen.classifier), input_size=(SIZE, SIZE))
    auxiliary = Auxiliary(models.get_model(chosen.auxiliary))
    # The schedule raises at its end, so it gets more steps than are trained.
    settings = TrainingSettings(10 * chosen.rounds + 10, PRESETS["resnet50"])
    training = Training(classifier, auxiliary, new_head(classifier, auxiliary, 0), settings)
    pixels = torch.rand(chosen.batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    table = Table("", "seconds", "over its floor", "aim")
    for name, aim, (ours, floor) in (
        ("explaining, over one pass of f and g", 1.1, explaining(training, pixels)),
        ("a training step", 1.15, training_step(training, pixels)),
    ):
        ours(), floor()
        times = [(seconds(ours), seconds(floor)) for _ in range(chosen.rounds)]
        ratio = median(ours / floor for ours, floor in times)
        table.add_row(name, f"{median(t for t, _ in times):.3f}", f"{ratio:.2f}", f"{aim}")
    Console().print(table)


if __name__ == "__main__":
    main()
