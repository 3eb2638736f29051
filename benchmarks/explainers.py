"""What each explainer costs, in bare forward passes of the same network, and over its own floor.

    python benchmarks/explainers.py [--networks mobilenet_v2 resnet50] [--batches 8 16] [--rounds 3]
        [--threads 1] [--skip scorecam]

The bare forward pass is tuned first: inference mode, the fastest batch size, channels_last where it is
faster. An explainer's time is all of what it needs: where it works on activations, the backbone, at that
same batch size, and the head's prediction as well. "together" is all explainers that work on cached
activations alone, after one pass through the backbone. A floor is what a method asks of the network and no
more: for DecomCAM one forward pass, the head and back, and q + 1 forward passes; for Score-CAM (on one
image) a forward pass for each masked input; all in full batches. pytorch-grad-cam's Grad-CAM runs beside
ours. Everything is measured anew in every round, one after the other; what is printed is the median over
rounds of the ratio within a round.
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

from explainers.base import Batch, Explainer, Explanation, Need
from explainers.classifier import Classifier
from explainers.head_gradient import head_gradient
from explainers.registry import explainers
from explainers.requirements import unmet

TOGETHER = "together"
CACHED = {Need.ACTIVATIONS, Need.GRADIENTS, Need.CURVATURE, Need.PREDICTION, Need.POOLED}
AIMS = {"gradcam": 1.2, "ddcam": 1.35, TOGETHER: 1.6}  # in bare forward passes
FLOOR_AIM = 1.15
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


def made(classifier: Classifier, name: str) -> Explainer:
    cls = explainers.get(name)
    explainer: Explainer = cls(classifier, cls.Parameters())
    return explainer


def explained(
    classifier: Classifier, chosen: list[Explainer], inputs: Tensor, size: int
) -> Callable[[], list[Explanation]]:
    """All that it takes from inputs to these explainers' maps."""
    count = len(inputs)

    def run() -> list[Explanation]:
        activations, targets = None, torch.zeros(count, dtype=torch.int64)
        if any(explainer.needs - {Need.INPUTS} for explainer in chosen):
            activations = chunked(classifier.activations, inputs, size)
            targets = chunked(classifier.head, activations, size).argmax(1)
        batch = Batch(inputs, targets, torch.arange(count), activations, size)
        return [explainer.explain(batch) for explainer in chosen]

    return run


def decomcam_floor(classifier: Classifier, inputs: Tensor, size: int) -> Callable[[], object]:
    passes = made(classifier, "decomcam").describe().details["d"].shape[0] + 1
    many = inputs.repeat(passes, 1, 1, 1)

    def run() -> None:
        activations = chunked(classifier.activations, inputs, size)
        targets = chunked(classifier.head, activations, size).argmax(1)
        batch = Batch(inputs, targets, torch.arange(len(inputs)), activations)
        for start in range(0, len(inputs), size):
            head_gradient(classifier, batch, slice(start, start + size))
        chunked(classifier.logits, many, size)

    return run


def scorecam_floor(classifier: Classifier, inputs: Tensor, passes: int, size: int) -> Callable[[], object]:
    many = inputs.expand(passes, -1, -1, -1)

    def run() -> None:
        chunked(classifier.logits, inputs, size)
        chunked(classifier.logits, many, size)

    return run


def theirs(network: nn.Module, layer: str, inputs: Tensor, size: int) -> Callable[[], object]:
    """pytorch-grad-cam's Grad-CAM of the predicted class, on a network as torchvision gives it."""
    cam = GradCAM(network.eval(), [network.get_submodule(layer)])
    return lambda: [cam(chunk, None) for chunk in inputs.split(size)]


def runs_of(
    classifier: Classifier, untouched: nn.Module, inputs: Tensor, size: int, skip: list[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Everything to measure, by name, and for each name with a floor the floor's."""
    able = [name for name in explainers.names() if unmet(explainers.get(name).needs, classifier) is None]
    cached = [made(classifier, name) for name in able if CACHED > explainers.get(name).needs > set()]
    runs: dict[str, Callable[[], object]] = {
        "bare forward": lambda: chunked(classifier.logits, inputs, size),
        "pytorch-grad-cam GradCAM": theirs(untouched, classifier.layer, inputs, size),
        TOGETHER: explained(classifier, cached, inputs, size),
    }
    print(f"{len(cached)} {TOGETHER}: {', '.join(explainer.name for explainer in cached)}")
    for name in able:
        if name != "scorecam":
            runs[name] = explained(classifier, [made(classifier, name)], inputs, size)
    floors = {"decomcam": "decomcam's floor"}
    runs[floors["decomcam"]] = decomcam_floor(classifier, inputs, size)
    if "scorecam" not in skip:
        floors["scorecam"] = "scorecam's floor"
        runs["scorecam"] = explained(classifier, [made(classifier, "scorecam")], inputs[:1], size)
        passes = int(runs["scorecam"]()[0].details["forward_passes"])  # type: ignore[index]
        runs[floors["scorecam"]] = scorecam_floor(classifier, inputs[:1], passes, size)
    return runs, floors


def table(name: str, rounds: int, batches: list[int], size: int, skip: list[str]) -> Table:
    network = torchvision.models.get_model(name)
    untouched = copy.deepcopy(network)
    with Classifier(network, input_size=(size, size)) as classifier:
        count, layout = tuned(classifier, batches, size)
        untouched.to(memory_format=FORMATS[layout])
        inputs = images(max(batches), size).contiguous(memory_format=FORMATS[layout])
        runs, floors = runs_of(classifier, untouched, inputs, count, skip)
        for key, run in runs.items():
            if "scorecam" not in key:
                run()
        times = [{key: seconds(run) for key, run in runs.items()} for _ in range(rounds)]
    result = Table("explainer", title=f"{name}, {size}x{size}, batch {count}, {layout}")
    for column in ("ms an image", "bare forwards", "aim", "over its floor", "aim"):
        result.add_column(column, justify="right")
    for key in runs:
        number = 1 if "scorecam" in key else len(inputs)
        ratio = median(each[key] / each["bare forward"] for each in times) * len(inputs) / number
        milliseconds = 1000 * median(each[key] for each in times) / number
        row = [f"{milliseconds:.1f}", f"{ratio:.2f}", f"{AIMS[key]:.2f}" if key in AIMS else ""]
        if key in floors:
            row += [f"{median(each[key] / each[floors[key]] for each in times):.2f}", f"{FLOOR_AIM:.2f}"]
        result.add_row(key, *row)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1, help="as in one of several worker processes")
    parser.add_argument("--skip", nargs="*", default=[], choices=["scorecam"], help="what takes minutes")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        Console().print(table(name, arguments.rounds, arguments.batches, arguments.size, arguments.skip))


if __name__ == "__main__":
    main()
