"""Measures what each explainer costs, in bare forward passes of the same network and over its own floor.

    python benchmarks/explainers.py [--networks torchvision/mobilenet_v2 torchvision/resnet50
        timm/vit_tiny_patch16_224] [--batches 8 16] [--rounds 3] [--threads 1] [--images 2] [--skip scorecam]

The bare forward pass is tuned first: inference mode, the fastest batch size, and channels_last if it is
faster. The time of an explainer includes all that it needs. If it works on activations, that is also the
backbone, at the same batch size, and the prediction of the head. "together" is all explainers that work on
cached activations alone, after one pass through the backbone.

Explainers that count their own forward passes run on a few images, with their fast preset if they have one.
They are compared with their floor, which is as many passes through the bare network in full batches: forward
and backward for explainers that take gradients of the pixels; for MoXI and Shapley values of a transformer as
many tokens through its encoder; and the backbone once in addition if they work on activations.
pytorch-grad-cam's Grad-CAM is measured for comparison.

Every round measures everything again, one after the other. The printed numbers are medians over the rounds of
the ratio within a round. P-TAME needs a trained head and has its own program, benchmarks/ptame.py.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Start again without this folder on the path, because this file would hide the package of the same name,
    # and with an allocator that keeps large tensors instead of returning them to the system.
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "68719476736"}
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], keep | os.environ)

import argparse
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
from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec, load
from explainers.registry import explainers
from explainers.requirements import unmet

TOGETHER = "together"
CACHED = {Need.ACTIVATIONS, Need.GRADIENTS, Need.CURVATURE, Need.PREDICTION, Need.POOLED}
AIMS = {"gradcam": 1.2, "ddcam": 1.35, TOGETHER: 1.6}  # bare forward passes, for convolutional networks
NETWORKS = ["torchvision/mobilenet_v2", "torchvision/resnet50", "timm/vit_tiny_patch16_224"]
FLOOR, FLOOR_AIM = "floor of ", 1.15
GRADIENTS_OF_PIXELS = (
    "integrated_gradients",
    "smoothgrad",
    "gradient_shap",
    "input_x_gradient",
    "generic_attention",
)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def seconds(run: Callable[[], object]) -> float:
    """The duration of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def images(count: int, size: int) -> Tensor:
    """(count, 3, size, size) random blobs in [0, 1]."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


@torch.inference_mode()
def chunked(run: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    """The results of ``run`` for all inputs, in batches of ``size``."""
    return torch.cat([run(chunk) for chunk in inputs.split(size)])


def tuned(classifier: Classifier, batches: list[int], size: int) -> tuple[int, str]:
    """Find the batch size and memory format with the fastest bare pass per image, and set the format."""
    found = {}
    for name, memory_format in FORMATS.items():
        classifier.network.to(memory_format=memory_format)
        for count in batches:
            inputs = images(count, size).contiguous(memory_format=memory_format)
            times = [seconds(lambda x=inputs: chunked(classifier.logits, x, len(x))) for _ in range(3)]
            found[count, name] = min(times[1:]) / count  # the first call warms up
    best = min(found, key=found.__getitem__)
    classifier.network.to(memory_format=FORMATS[best[1]])
    return best


def made(classifier: Classifier, name: str) -> Explainer:
    """The explainer with its fast preset if it has one; MoXI with its full order."""
    cls = explainers.get(name)
    options: dict[str, object] = {"preset": "fast"} if "preset" in cls.Parameters.model_fields else {}
    if name == "moxi":
        options["full_order"] = True
    explainer: Explainer = cls(classifier, cls.Parameters(**options))
    return explainer


def explained(
    classifier: Classifier, chosen: list[Explainer], inputs: Tensor, size: int
) -> Callable[[], list[Explanation]]:
    """A function that computes everything from the inputs to the maps of these explainers."""
    count = len(inputs)

    def run() -> list[Explanation]:
        activations, targets = None, torch.zeros(count, dtype=torch.int64)
        if any(explainer.needs - {Need.PIXELS} for explainer in chosen):
            activations = chunked(classifier.activations, inputs, size)
            targets = chunked(classifier.head, activations, size).argmax(1)
        batch = Batch(inputs, targets, torch.arange(count), activations, size)
        return [explainer.explain(batch) for explainer in chosen]

    return run


def floor_of(classifier: Classifier, explainer: Explainer, inputs: Tensor, size: int) -> Callable[[], object]:
    """A function that runs only the passes that the explainer needs for these inputs."""
    (explanation,) = explained(classifier, [explainer], inputs, size)()
    passes = int(explanation.details["forward_passes"].sum())
    tokens = int(explanation.details.get("tokens", torch.zeros(1)).sum())
    back = explainer.name in GRADIENTS_OF_PIXELS

    def run() -> None:
        if Need.ACTIVATIONS in explainer.needs:
            chunked(classifier.logits, inputs, size)
        if tokens:
            embedded = chunked(classifier.embed, inputs, size)
            whole = embedded[:1].expand(tokens // embedded.shape[1], -1, -1)
            chunked(classifier.encode, whole, size)
        elif back:
            for chunk in inputs[:1].expand(passes, -1, -1, -1).split(size):
                leaf = chunk.clone().requires_grad_()
                torch.autograd.grad(classifier.logits(leaf)[:, 0].sum(), leaf)
        else:
            chunked(classifier.logits, inputs[:1].expand(passes, -1, -1, -1), size)

    return run


def theirs(network: nn.Module, layer: str, inputs: Tensor, size: int) -> Callable[[], object]:
    """A function that runs pytorch-grad-cam's Grad-CAM of the predicted class on a torchvision network."""
    cam = GradCAM(network.eval(), [network.get_submodule(layer)])
    return lambda: [cam(chunk, None) for chunk in inputs.split(size)]


def runs_of(
    classifier: Classifier, inputs: Tensor, few: int, size: int, skip: list[str]
) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """All functions to measure, by name, and the names that run on ``few`` images and have a floor."""
    able = [name for name in explainers.names() if unmet(explainers.get(name).needs, classifier) is None]
    made_ones = {name: made(classifier, name) for name in able if name not in {*skip, "ptame"}}
    cached = [explainer for explainer in made_ones.values() if CACHED > explainer.needs > set()]
    runs: dict[str, Callable[[], object]] = {
        "bare forward": lambda: chunked(classifier.logits, inputs, size),
        TOGETHER: explained(classifier, cached, inputs, size),
    }
    print(f"{len(cached)} {TOGETHER}: {', '.join(explainer.name for explainer in cached)}")
    counted = [name for name, each in made_ones.items() if "forward_passes" in each.describe().details]
    for name, explainer in made_ones.items():
        images = inputs[:few] if name in counted else inputs
        runs[name] = explained(classifier, [explainer], images, size)
        if name in counted:
            runs[FLOOR + name] = floor_of(classifier, explainer, images, size)
    return runs, counted


def table(name: str, rounds: int, batches: list[int], size: int, few: int, skip: list[str]) -> Table:
    """Measure one network and return the table of its results."""
    source, _, architecture = name.partition("/")
    with load(ModelSpec(source=source, name=architecture, weights="none", crop=size)) as classifier:
        count, layout = tuned(classifier, batches, size)
        inputs = images(max(batches), size).contiguous(memory_format=FORMATS[layout])
        runs, counted = runs_of(classifier, inputs, few, count, skip)
        if source == "torchvision" and classifier.units.kind == "channels":
            network = torchvision.models.get_model(architecture).to(memory_format=FORMATS[layout])
            runs["pytorch-grad-cam GradCAM"] = theirs(network, classifier.layer, inputs, count)
        for key, run in runs.items():
            if key.removeprefix(FLOOR) not in counted:
                run()
        times = [{key: seconds(run) for key, run in runs.items()} for _ in range(rounds)]
    result = Table("explainer", title=f"{name}, {size}x{size}, batch {count}, {layout}")
    for column in ("ms per image", "bare forwards", "aim", "over its floor", "aim"):
        result.add_column(column, justify="right")
    aims = AIMS if source == "torchvision" else {}
    for key in runs:
        if key.startswith(FLOOR):
            continue
        number = few if key in counted else len(inputs)
        ratio = median(each[key] / each["bare forward"] for each in times) * len(inputs) / number
        milliseconds = 1000 * median(each[key] for each in times) / number
        row = [f"{milliseconds:.1f}", f"{ratio:.2f}", f"{AIMS[key]:.2f}" if key in aims else ""]
        if key in counted:
            row += [f"{median(each[key] / each[FLOOR + key] for each in times):.2f}", f"{FLOOR_AIM:.2f}"]
        result.add_row(key, *row)
    return result


def main() -> None:
    """Measure the networks named on the command line and print one table for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1, help="1 is as in a worker process")
    parser.add_argument(
        "--images", type=int, default=2, help="images for explainers that count their own forward passes"
    )
    parser.add_argument("--skip", nargs="*", default=[], help="explainers to leave out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        Console().print(
            table(name, arguments.rounds, arguments.batches, arguments.size, arguments.images, arguments.skip)
        )


if __name__ == "__main__":
    main()
