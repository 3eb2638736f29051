"""Measures what metrics cost: insertion and deletion over their passes, ROAD and flipping beside others.

    python benchmarks/metrics.py [--network mobilenet_v2] [--images 2] [--forwards 8] [--rounds 3]
        [--threads 1]

The network is one of torchvision's with random weights at 224x224 pixels.

- Insertion and deletion of the same images are divided by as many passes of the bare network, in batches of
  the same size. Times are milliseconds per forward pass.
- ROAD's linear imputation of images without 10, 20, ..., 90 % of their pixels, all in one call, is compared
  with pytorch-grad-cam's sparse solver, which takes the same images one by one; both are without noise. The
  most salient pixels are removed, by saliency maps of blobs (an interpolated 7x7 grid) and of noise. Single
  levels follow below each. Times are milliseconds per image and level.
- Pixel flipping of 16 images in 24 steps is compared with that of Quantus with as many passes. Times are
  milliseconds per image.

Every round measures both of a pair again, one after the other. The ratio is the median over the rounds of the
ratio within a round.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Start again without this folder on the path, because a file in it hides a package of the same name, and
    # with an allocator that keeps large tensors instead of returning them to the system.
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "68719476736"}
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], keep | os.environ)

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import quantus
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import models

from explainers.models.classifier import Classifier
from tasks.metrics.base import Metric, MetricBatch
from tasks.metrics.imputation import linear
from tasks.metrics.insertion_deletion import Deletion, DeletionParameters, Insertion, InsertionParameters
from tasks.metrics.pixel_flipping import PixelFlipping, PixelFlippingParameters
from tasks.metrics.ranking import ranks

SIZE = 224
LEVELS = range(10, 100, 10)
SHOWN = (10, 50, 90)
FLIPPED, FLIPPING_STEPS = 16, 24  # Quantus does not allow our 28 steps; 24 is the nearest number it allows


@dataclass(frozen=True)
class Pair:
    """Two ways to compute the same.

    Attributes
    ----------
    name
        What they compute.
    ours, others
        The two ways.
    count
        How many results both compute; times are per result.
    faster
        Whether the ratio is the time of the others over ours, or ours over theirs.
    aim
        The ratio to reach.
    """

    name: str
    ours: Callable[[], object]
    others: Callable[[], object]
    count: int
    faster: bool
    aim: str = ""

    def row(self, rounds: int) -> list[str]:
        """Measure both ways and return a row of the table."""
        self.ours()
        times = [(seconds(self.ours), seconds(self.others)) for _ in range(rounds)]
        ratio = median(theirs / ours if self.faster else ours / theirs for ours, theirs in times)
        columns = (1000 * median(column) / self.count for column in zip(*times, strict=True))
        return [self.name, *(f"{each:.1f}" for each in columns), f"{ratio:.2f}", self.aim]


def seconds(run: Callable[[], object]) -> float:
    """The duration of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def blobs(count: int, channels: int, seed: int) -> Tensor:
    """Smooth random values (count, channels, SIZE, SIZE) in [0, 1]."""
    coarse = torch.rand(count, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    return interpolate(coarse, SIZE, mode="bilinear")


def noise(count: int, channels: int, seed: int) -> Tensor:
    """Independent random values (count, channels, SIZE, SIZE) in [0, 1]."""
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def pictures(count: int) -> Tensor:
    """Images (count, 3, SIZE, SIZE) in [0, 1]: blobs with a little noise."""
    return 0.9 * blobs(count, 3, 0) + 0.1 * noise(count, 3, 1)


@torch.inference_mode()
def batch_of(classifier: Classifier, count: int, forwards: int) -> MetricBatch:
    """A batch of ``count`` images with their predicted classes."""
    inputs = pictures(count)
    confidence, targets = classifier.probability(classifier.logits(inputs)).max(1)
    return MetricBatch(
        inputs, targets, torch.arange(count), confidence, [torch.zeros(0, 4)] * count, forwards
    )


def causal(classifier: Classifier, count: int, forwards: int) -> Pair:
    """Insertion and deletion, and as many passes through the network alone."""
    batch, maps = batch_of(classifier, count, forwards), blobs(count, 1, 2)[:, 0]
    insertion, deletion = InsertionParameters(), DeletionParameters()
    metrics: list[Metric] = [Insertion(classifier, insertion), Deletion(classifier, deletion)]
    # Both metrics pass each step but the last. The last step of insertion is the whole image, whose
    # probability is given, and that of deletion the same grey for all images, which is passed once. The
    # blurred image that insertion starts from is passed for each image.
    passes = count * (insertion.steps - 1 + deletion.steps - 1 + 1) + 1
    inputs = classifier.normalised(pictures(forwards))

    @torch.inference_mode()
    def bare() -> None:
        for done in range(0, passes, forwards):
            classifier.network(inputs[: min(forwards, passes - done)])

    return Pair(
        f"insertion and deletion, {passes} passes, over those of the bare network",
        lambda: [metric.score(batch, maps) for metric in metrics],
        bare,
        passes,
        faster=False,
        aim="at most 1.15",
    )


def removed_at(maps: Tensor, levels: list[int]) -> Tensor:
    """The most salient pixels of maps (N, SIZE, SIZE): (N * levels, SIZE, SIZE) bool, image by image."""
    order = ranks(maps, torch.arange(len(maps)))[:, None]
    counts = torch.tensor(levels)[:, None] * order.shape[-1] // 100
    return (order < counts).view(-1, SIZE, SIZE)


def imputing(kind: str, maps: Tensor, levels: list[int], aim: str = "") -> Pair:
    """Linear imputation of all images and levels: ours, and that of pytorch-grad-cam."""
    removed = removed_at(maps, levels)
    images = pictures(len(maps)).repeat_interleave(len(levels), 0)
    solve = NoisyLinearImputer(noise=0)
    kept = (~removed).float()

    @torch.inference_mode()
    def ours() -> Tensor:
        return linear(images, removed)

    shares = f"{levels[0]} %" if len(levels) == 1 else f"{levels[0]} to {levels[-1]} %"
    return Pair(
        f"imputing {shares} of {kind}, pytorch-grad-cam over ours",
        ours,
        lambda: [solve(image, left) for image, left in zip(images, kept, strict=True)],
        len(images),
        faster=True,
        aim=aim,
    )


def flipping(classifier: Classifier, forwards: int) -> Pair:
    """Pixel flipping of the same images in as many steps: ours, and that of Quantus."""
    batch, maps = batch_of(classifier, FLIPPED, forwards), blobs(FLIPPED, 1, 2)
    metric = PixelFlipping(classifier, PixelFlippingParameters(steps=FLIPPING_STEPS))
    theirs = quantus.PixelFlipping(
        features_in_step=3 * SIZE * SIZE // FLIPPING_STEPS, perturb_baseline=0.0, disable_warnings=True
    )
    inputs, targets, saliency = batch.inputs.numpy(), batch.targets.numpy(), maps.numpy()
    return Pair(
        f"pixel flipping of {FLIPPED} images in {FLIPPING_STEPS} steps, Quantus over ours",
        lambda: metric.score(batch, maps[:, 0]),
        lambda: theirs(classifier.network, inputs, targets, saliency, device="cpu", batch_size=forwards),
        FLIPPED,
        faster=True,
    )


def main() -> None:
    """Measure all pairs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=2, help="images, except for pixel flipping")
    parser.add_argument("--forwards", type=int, default=8, help="images in one forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="1 is as in a worker process")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)
    classifier = Classifier(models.get_model(chosen.network).eval(), input_size=(SIZE, SIZE))
    pairs = [causal(classifier, chosen.images, chosen.forwards)]
    for kind, made in (("blobs", blobs), ("noise", noise)):
        maps = made(chosen.images, 1, 3)[:, 0]
        pairs.append(imputing(kind, maps, list(LEVELS), "at least 20"))
        pairs += [imputing(kind, maps, [level]) for level in SHOWN]
    pairs.append(flipping(classifier, chosen.forwards))
    table = Table("", title=f"{chosen.network}, {SIZE}x{SIZE}, {chosen.threads} threads")
    for column in ("ours, ms", "others, ms", "ratio", "aim"):
        table.add_column(column, justify="right")
    for pair in pairs:
        table.add_row(*pair.row(chosen.rounds))
    Console().print(table)


if __name__ == "__main__":
    main()
