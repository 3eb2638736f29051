"""Compares maps and scores that a GPU computes with those of the CPU, in float32 without TF32.

    python benchmarks/gpu_agreement.py [--networks torchvision/resnet18 timm/vit_tiny_patch16_224]
        [--weights FILE] [--num-classes K] [--images FOLDER] [--count 4] [--forwards 64]

For every explainer that the network can serve, with the fast preset if it has one, the program prints how the
GPU's maps agree with the CPU's: the mean and the lowest rank correlation, and the mean and the largest
difference, which is the norm of the difference of two maps over the norm of the CPU's. For every metric it
prints the largest difference of a score of the same Grad-CAM maps. Weights and images are random if none are
given. P-TAME is left out, since it needs a trained head.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    import os

    # Start again without this folder on the path, because a file in it would hide a package of the same name.
    os.execv(sys.executable, [sys.executable, "-P", *sys.argv])

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import floodlit
from explainers.registry import explainers
from storage.datasets.formats import suffixes
from tasks.metrics.registry import metrics
from tasks.results.agreement import agreement_of


def inputs_of(folder: Path | None, count: int) -> Any:
    """The first images of a folder, or random blobs without one."""
    if folder is None:
        coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.interpolate(coarse, 224, mode="bilinear")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes())[:count]


def explained(models: dict[str, Any], inputs: Any, forwards: int) -> Table:
    """One row for every explainer that the network can serve."""
    table = Table("explainer", title="maps of the GPU and of the CPU")
    for column in ("rank correlation", "lowest", "difference", "largest"):
        table.add_column(column, justify="right")
    with torch.no_grad():
        targets = floodlit.explain(models["cpu"], inputs, "all_ones").targets.tolist()
    for name in explainers.names():
        fields = explainers.get(name).Parameters.model_fields
        fast = {"preset": "fast"} if "preset" in fields else {}
        try:
            found = {
                device: floodlit.explain(model, inputs, name, forwards=forwards, **fast)
                for device, model in models.items()
            }
        except ValueError as error:
            table.add_row(name, str(error)[:60])
            continue
        same = all(each.targets.tolist() == targets for each in found.values())
        maps = {device: each.maps for device, each in found.items()}
        sites = torch.ones(len(targets), 224, 224, dtype=torch.bool)
        told = agreement_of(maps["cuda"], maps["cpu"], sites)
        numbers = (told.rank_correlation, told.worst_rank_correlation, told.difference, told.worst_difference)
        shown = [
            "-" if each is None else f"{each:.2g}" if i > 1 else f"{each:.5f}"
            for i, each in enumerate(numbers)
        ]
        table.add_row(name + ("" if same else " (other targets!)"), *shown)
    return table


def scored(models: dict[str, Any], inputs: Any, forwards: int) -> Table:
    """One row for every metric that scores Grad-CAM's maps."""
    table = Table("metric", "largest difference of a score", title="scores of the GPU and of the CPU")
    found = floodlit.explain(models["cpu"], inputs, "gradcam")
    count = len(found.maps)
    given = {
        "boxes": [[(50, 50, 150, 160)]] * count,
        "masks": [torch.ones(224, 224, dtype=torch.bool).tril().numpy()] * count,
    }
    for name in metrics.names():
        needs = {need.value for need in metrics.get(name).needs}
        its = {key: value for key, value in given.items() if key in needs}
        try:
            scores = {
                device: floodlit.score(model, inputs, found, name, forwards=forwards, **its)
                for device, model in models.items()
            }
        except ValueError as error:
            table.add_row(name, str(error)[:80])
            continue
        worst = 0.0
        for column, values in scores["cpu"].values.items():
            a, b = values.double().cpu(), scores["cuda"].values[column].double().cpu()
            if not torch.equal(a.isfinite(), b.isfinite()):
                worst = torch.inf
            worst = max([worst, *(a - b)[a.isfinite()].abs().tolist()])
        table.add_row(name, f"{worst:.2g}")
    return table


def main() -> None:
    """Compare the networks named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", default=["torchvision/resnet18", "timm/vit_tiny_patch16_224"]
    )
    parser.add_argument("--weights", default="none", help="a file, or a name that the source knows")
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--images", type=Path, help="a folder of images")
    parser.add_argument("--count", type=int, default=4, help="images")
    parser.add_argument("--forwards", type=int, default=64, help="forward passes per perturbation step")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here")
    inputs = inputs_of(asked.images, asked.count)
    console = Console(width=120)
    for network in asked.networks:
        source, _, name = network.partition("/")
        keys = {} if asked.num_classes is None else {"num_classes": asked.num_classes}
        models = {
            device: floodlit.load(source, name, device=device, weights=asked.weights, **keys)
            for device in ("cpu", "cuda")
        }
        console.print(f"{network}, {torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}")
        console.print(explained(models, inputs, asked.forwards))
        console.print(scored(models, inputs, asked.forwards))


if __name__ == "__main__":
    main()
