"""What each explainer costs, in bare forward passes of the same network.

    python benchmarks/explainers.py [--networks mobilenet_v2 resnet50] [--batches 8 16 32] [--rounds 3]
        [--threads 2]

The bare forward pass is tuned first: inference mode, the fastest batch size, channels_last where it is
faster. An explainer's time is all of what it needs: where it works on activations, the backbone, at that
same batch size, and the head's prediction as well. pytorch-grad-cam's Grad-CAM runs beside ours. Everything
is measured anew in every round, one after the other, on as many images as the largest batch has; what is
printed is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Once more, without this folder on the path, where this file would hide the package of the same name,
    # and with an allocator that keeps large tensors instead of returning them to the system.
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "68719476736"}
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], keep | os.environ)

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from pytorch_grad_cam import GradCAM
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from explainers.base import Batch, Explainer, Need
from explainers.classifier import Classifier
from explainers.registry import explainers

AIMS = {"gradcam": 1.2, "ddcam": 1.35}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def images(count: int, size: int) -> Tensor:
    """(count, 3, size, size) random blobs in [0, 1]."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


@torch.inference_mode()
def chunked(run: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    return torch.cat([run(chunk) for chunk in inputs.split(size)])


def tuned(classifier: Classifier, batches: list[int], size: int) -> tuple[int, str]:
    """The batch size and memory format with the fastest bare forward pass per image."""
    found = {}
    for name, memory_format in FORMATS.items():
        classifier.network.to(memory_format=memory_format)
        for count in batches:
            inputs = images(count, size).contiguous(memory_format=memory_format)
            times = [seconds(lambda x=inputs: chunked(classifier.logits, x, len(x))) for _ in range(3)]
            found[count, name] = min(times[1:]) / count
    best = min(found, key=found.__getitem__)
    classifier.network.to(memory_format=FORMATS[best[1]])
    return best


def explained(
    classifier: Classifier, explainer: Explainer, inputs: Tensor, size: int
) -> Callable[[], object]:
    """All that it takes from inputs to this explainer's maps."""
    count = len(inputs)

    def run() -> object:
        activations, targets = None, torch.zeros(count, dtype=torch.int64)
        if explainer.needs - {Need.INPUTS}:
            activations = chunked(classifier.activations, inputs, size)
            targets = chunked(classifier.head, activations, size).argmax(1)
        return explainer.explain(Batch(inputs, targets, torch.arange(count), activations))

    return run


def theirs(network: nn.Module, layer: str, inputs: Tensor, size: int) -> Callable[[], object]:
    """pytorch-grad-cam's Grad-CAM of the predicted class, on a network as torchvision gives it."""
    cam = GradCAM(network.eval(), [network.get_submodule(layer)])
    return lambda: [cam(chunk, None) for chunk in inputs.split(size)]


def table(name: str, rounds: int, batches: list[int], size: int) -> Table:
    network = torchvision.models.get_model(name)
    untouched = copy.deepcopy(network)
    with Classifier(network, input_size=(size, size)) as classifier:
        count, layout = tuned(classifier, batches, size)
        untouched.to(memory_format=FORMATS[layout])
        inputs = images(max(batches), size).contiguous(memory_format=FORMATS[layout])
        runs: dict[str, Callable[[], object]] = {
            "bare forward": lambda: chunked(classifier.logits, inputs, count),
            "pytorch-grad-cam GradCAM": theirs(untouched, classifier.layer, inputs, count),
        }
        for key in explainers.names():
            cls = explainers.get(key)
            runs[key] = explained(classifier, cls(classifier, cls.Parameters()), inputs, count)
        for run in runs.values():
            run()
        times = [{key: seconds(run) for key, run in runs.items()} for _ in range(rounds)]
    result = Table("explainer", title=f"{name}, {size}x{size}, batch {count}, {layout}")
    for column in ("ms an image", "bare forwards", "aim"):
        result.add_column(column, justify="right")
    for key in runs:
        ratio = median(each[key] / each["bare forward"] for each in times)
        milliseconds = 1000 * median(each[key] for each in times) / len(inputs)
        aim = f"{AIMS[key]:.2f}" if key in AIMS else ""
        result.add_row(key, f"{milliseconds:.1f}", f"{ratio:.2f}", aim)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1, help="as in one of several worker processes")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        Console().print(table(name, arguments.rounds, arguments.batches, arguments.size))


if __name__ == "__main__":
    main()
