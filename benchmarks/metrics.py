"""What metrics cost: insertion and deletion over their forward passes, ROAD and pixel flipping beside others.

    python benchmarks/metrics.py [--network mobilenet_v2] [--images 2] [--forwards 8] [--rounds 3]
        [--threads 1]

The network is torchvision's with random weights at 224x224 pixels.

- Insertion and deletion of the same images, over as many passes of the bare network in batches of the same
  size.
- ROAD's linear imputation of images without 10, 20, ..., 90 % of their pixels, all in one call, beside
  pytorch-grad-cam's sparse solve of the same images one by one, both without noise. What is removed are the
  most salient pixels of blobs, a 7x7 grid interpolated, and of noise. Below each are single levels.
- Pixel flipping of 16 images in 24 steps, beside Quantus's with as many passes.

Times are milliseconds a forward pass, an image at a level, and an image. Both of a pair are measured anew in
every round, one after the other; the ratio is the median over rounds of that within a round.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Once more, without this folder on the path, where a file hides the package of the same name, and with
    # an allocator that keeps large tensors instead of returning them to the system.
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
FLIPPED, FLIPPING_STEPS = 16, 24  # of the step sizes that Quantus allows the nearest to our 28


@dataclass(frozen=True)
class Pair:
    """Two ways to the same end; ``count`` is how many things they both make, ``aim`` the ratio to reach."""

    name: str
    ours: Callable[[], object]
    others: Callable[[], object]
    count: int
    faster: bool  # whether the ratio is the others' time over ours, or ours over theirs
    aim: str = ""

    def row(self, rounds: int) -> list[str]:
        self.ours()
        times = [(seconds(self.ours), seconds(self.others)) for _ in range(rounds)]
        ratio = median(theirs / ours if self.faster else ours / theirs for ours, theirs in times)
        columns = (1000 * median(column) / self.count for column in zip(*times, strict=True))
        return [self.name, *(f"{each:.1f}" for each in columns), f"{ratio:.2f}", self.aim]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def blobs(count: int, channels: int, seed: int) -> Tensor:
    """(count, channels, SIZE, SIZE) in [0, 1], smooth."""
    coarse = torch.rand(count, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    return interpolate(coarse, SIZE, mode="bilinear")


def noise(count: int, channels: int, seed: int) -> Tensor:
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def pictures(count: int) -> Tensor:
    """(count, 3, SIZE, SIZE) in [0, 1], smooth but for a little noise."""
    return 0.9 * blobs(count, 3, 0) + 0.1 * noise(count, 3, 1)


@torch.inference_mode()
def batch_of(classifier: Classifier, count: int, forwards: int) -> MetricBatch:
    inputs = pictures(count)
    confidence, targets = classifier.logits(inputs).softmax(1).max(1)
    return MetricBatch(
        inputs, targets, torch.arange(count), confidence, [torch.zeros(0, 4)] * count, forwards
    )


def causal(classifier: Classifier, count: int, forwards: int) -> Pair:
    """Insertion and deletion, and the passes they make through the network alone."""
    batch, maps = batch_of(classifier, count, forwards), blobs(count, 1, 2)[:, 0]
    insertion, deletion = InsertionParameters(), DeletionParameters()
    metrics: list[Metric] = [Insertion(classifier, insertion), Deletion(classifier, deletion)]
    # Each step but the last, and each image blurred; all of them end at the same grey; the whole image's
    # probability is given.
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
    """(N * levels, SIZE, SIZE) bool: the most salient pixels of (N, SIZE, SIZE) maps, image by image."""
    order = ranks(maps, torch.arange(len(maps)))[:, None]
    counts = torch.tensor(levels)[:, None] * order.shape[-1] // 100
    return (order < counts).view(-1, SIZE, SIZE)


def imputing(kind: str, maps: Tensor, levels: list[int], aim: str = "") -> Pair:
    """Ours of all images and levels, and theirs."""
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
    """Pixel flipping of the same images in as many steps, ours and Quantus's."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=2, help="of all but pixel flipping")
    parser.add_argument("--forwards", type=int, default=8, help="images in one forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="as in one of several worker processes")
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
