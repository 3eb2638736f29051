"""Measures what each explainer gains from lower precision, TF32 and compilation, and how busy the device is.

    python benchmarks/gpu.py [--networks torchvision/resnet50 torchvision/vit_b_16] [--weights FILE]
        [--images FOLDER] [--count 32] [--size 224] [--batch 16] [--forwards 64] [--rounds 3]
        [--explainers gradcam rise] [--ways float32 tf32 bfloat16 float16 compile bfloat16+compile]

For every explainer that the network can serve, with the fast preset if it has one, the program prints one row
for every way of computing, as soon as they are measured:

- images per second, from pixels to maps, with the backbone;
- the same divided by that of float32;
- the share of the time in which the device runs kernels;
- the mean rank correlation of the maps with those in float32, for the same classes.

The first rows are of the network alone, on inputs that are already on the device, in batches of
``--forwards``: the floor of every explainer that perturbs the input.

Everything runs once before it is measured, because that is when compilation happens. Then every round
measures everything again, one after the other. The printed numbers are medians over the rounds; for the
ratio, the median of the ratios within a round. PyTorch's profiler measures the time of the kernels in one
more run, without copies; it is divided by the median time without the profiler. On the CPU it is "n/a".
Weights and images are random if none are given. P-TAME is left out, since it needs a trained head.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Start again without this folder on the path, because a file in it would hide a package of the same name,
    # and with an allocator that keeps large tensors instead of returning them to the system.
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "68719476736"}
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], keep | os.environ)

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from explainers.base import Batch, Explainer, Need
from explainers.models.classifier import Classifier
from explainers.models.compute import Compute, tf32
from explainers.models.loading import ModelSpec, load, preprocessing
from explainers.registry import explainers
from explainers.requirements import unmet
from storage.datasets.bands import read_image
from storage.datasets.formats import suffixes
from storage.datasets.geometry import prepare_image
from tasks.results.agreement import agreement_of
from tasks.run_parts import device
from tasks.shard_rows import chunks

WAYS = {
    "float32": Compute(),
    "tf32": Compute(tf32=True),
    "bfloat16": Compute(precision="bfloat16"),
    "float16": Compute(precision="float16"),
    "compile": Compute(compile=True),
    "bfloat16+compile": Compute(precision="bfloat16", compile=True),
}
ALONE = "(network alone)"
_BATCHES = 4  # of the network alone
COPIES = ("Memcpy", "Memset")  # events of the profiler that are not kernels


def pixels(spec: ModelSpec, folder: Path | None, count: int, size: int) -> Tensor:
    """The first images of a folder, or random blobs without one: (count, 3, size, size) in [0, 1]."""
    if folder is None:
        coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    how = preprocessing(spec)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes())
    images = [prepare_image(read_image(file), [], **how.geometry)[0] for file in files[:count]]
    return torch.from_numpy(np.stack(images)).float() / 255


def made(classifier: Classifier, name: str) -> Explainer:
    """The explainer with its fast preset if it has one."""
    cls = explainers.get(name)
    fast: dict[str, object] = {"preset": "fast"} if "preset" in cls.Parameters.model_fields else {}
    explainer: Explainer = cls(classifier, cls.Parameters(**fast))
    return explainer


def from_pixels(
    classifier: Classifier, name: str, inputs: Tensor, targets: Tensor, batch: int, forwards: int
) -> Callable[[], Tensor]:
    """A function that computes everything from pixels on the host to maps on the host."""
    explainer = made(classifier, name)
    seeds = torch.arange(len(inputs), device=classifier.device)

    def run() -> Tensor:
        maps = []
        for rows in chunks(len(inputs), batch):
            seen, activations = inputs[rows].to(classifier.device), None
            if Need.ACTIVATIONS in explainer.needs:
                with torch.no_grad():
                    activations = classifier.activations(seen)
            explained = explainer.explain(Batch(seen, targets[rows], seeds[rows], activations, forwards))
            maps.append(explained.maps.detach().cpu())
        return torch.cat(maps)

    return run


def alone(classifier: Classifier, inputs: Tensor, forwards: int) -> Callable[[], Tensor]:
    """A function that computes the logits of inputs that are on the device, in batches of ``forwards``."""

    def run() -> Tensor:
        with torch.inference_mode():
            parts = [classifier.logits(inputs[rows]) for rows in chunks(len(inputs), forwards)]
            return torch.cat(parts).cpu()

    return run


def seconds(run: Callable[[], Tensor]) -> float:
    """The duration of a run. It ends with a copy to the host, so all kernels have finished by then."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def kernel_seconds(run: Callable[[], Tensor]) -> float:
    """The seconds of a run in which at least one kernel ran on the GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith(COPIES)
    )
    busy, until = 0.0, 0.0  # kernels may overlap, so their spans are merged
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6  # the profiler counts microseconds


@torch.no_grad()
def drawn(classifier: Classifier) -> None:
    """Give random weights to layers of zeros, such as the last layer of an untrained transformer."""
    torch.manual_seed(0)
    for parameter in classifier.network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=0.02)


def classifiers(spec: ModelSpec, ways: list[str]) -> dict[str, Classifier]:
    """One classifier for each of the ``ways`` in which the network can be computed."""
    found = {}
    for way in ways:
        classifier = load(spec, device())
        drawn(classifier)
        try:
            classifier.use(WAYS[way])
        except ValueError as error:
            print(f"{way}: {error}")
            continue
        found[way] = classifier
    return found


def tables(spec: ModelSpec, asked: argparse.Namespace) -> Iterator[Table]:
    """Measure one network; a table of the network alone, and one of every explainer."""
    ways = classifiers(spec, ["float32", *(way for way in asked.ways if way != "float32")])
    whole = ways["float32"]
    inputs = pixels(spec, asked.images, asked.count, asked.size)
    with torch.inference_mode():
        parts = [whole.logits(inputs[rows].to(whole.device)) for rows in chunks(len(inputs), asked.batch)]
    targets = torch.cat(parts).argmax(1).clone()  # autograd does not take tensors of inference mode
    sites = whole.sites(inputs)
    title = f"{spec.name}, {asked.size}x{asked.size}, {whole.device}"
    served = [name for name in explainers.names() if unmet(explainers.get(name).needs, whole) is None]
    many = inputs.repeat(-(-_BATCHES * asked.forwards // len(inputs)), 1, 1, 1)[: _BATCHES * asked.forwards]
    many = many.to(whole.device)
    for name in [ALONE, *(name for name in asked.explainers or served if name != "ptame")]:
        runs = {
            way: alone(classifier, many, asked.forwards)
            if name == ALONE
            else from_pixels(classifier, name, inputs, targets, asked.batch, asked.forwards)
            for way, classifier in ways.items()
        }
        maps = {way: run() for way, run in runs.items()}  # these runs also warm up and compile
        times = [{way: seconds(run) for way, run in runs.items()} for _ in range(asked.rounds)]
        result = Table("explainer", "computed in", title=title)
        for column in ("images per second", "over float32", "kernels' share", "rank correlation"):
            result.add_column(column, justify="right")
        for way, run in runs.items():
            took = median(each[way] for each in times)
            share = f"{kernel_seconds(run) / took:.2f}" if whole.device.type == "cuda" else "n/a"
            gain = median(each["float32"] / each[way] for each in times)
            rank = agreement_of(maps[way], maps["float32"], sites).rank_correlation
            told = "-" if rank is None else f"{rank:.4f}"
            images = len(many) if name == ALONE else len(inputs)
            result.add_row(name, way, f"{images / took:,.1f}", f"{gain:.2f}", share, told)
        yield result


def main(arguments: list[str] | None = None) -> None:
    """Measure the networks named on the command line and print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["torchvision/resnet50", "torchvision/vit_b_16"])
    parser.add_argument("--weights", default="none", help="a file, or a name that the source knows")
    parser.add_argument("--images", type=Path, help="a folder of images")
    parser.add_argument("--count", type=int, default=32, help="images")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--forwards", type=int, default=64, help="forward passes per perturbation step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--explainers", nargs="+", help="default: all that the network can serve")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    asked = parser.parse_args(arguments)
    console = Console() if Console().is_terminal else Console(width=120)
    with tf32(False):
        for network in asked.networks:
            source, _, name = network.partition("/")
            spec = ModelSpec(source=source, name=name, weights=asked.weights, crop=asked.size)
            for table in tables(spec, asked):
                console.print(table)


if __name__ == "__main__":
    main()
