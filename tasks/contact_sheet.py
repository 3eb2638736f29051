"""One picture of a run: some images, and every explainer's maps over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from storage.files import replacing
from storage.maps import read
from storage.run import Run
from storage.scores import read_samples
from tasks.metrics.preparation import prepare

IMAGES = 8
INCHES = 1.5


def draw_contact_sheet(run: Run) -> None:
    """Write ``report/contact_sheet.png``: a row per image, spread evenly over the usable ones.

    Maps are read as the metrics read them (ReLU, bilinear, min-max) and laid over the image; boxes are
    drawn on the image itself. Where an image has several targets the first one's map is shown.
    """
    samples = read_samples(run.root)
    usable = [row for row, sample in enumerate(samples) if sample["status"] == "ok"]
    if not usable:
        return
    spread = np.linspace(0, len(usable) - 1, min(IMAGES, len(usable))).round().astype(int)
    chosen = [usable[i] for i in spread]
    names = list(run.explainers)
    figure = Figure(figsize=(INCHES * (1 + len(names)), INCHES * len(chosen) * 1.12), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(chosen), 1 + len(names)))
    for line, row in enumerate(chosen):
        pixels = np.moveaxis(read(run.inputs, row, row + 1)[0], 0, -1)
        _draw_image(axes[line, 0], pixels, samples[row])
        for place, name in enumerate(names):
            _draw_map(axes[line, place + 1], pixels, _map(run, name, row))
            if line == 0:
                axes[line, place + 1].set_title(name, fontsize=9)
    with replacing(run.report / "contact_sheet.png") as partial:
        FigureCanvasAgg(figure).print_figure(partial, dpi=110, format="png")


def _map(run: Run, name: str, row: int) -> np.ndarray:
    first = row * run.targets_per_image
    raw = torch.from_numpy(read(run.saliency(name) / "maps", first, first + 1))
    prepared, _ = prepare(raw.float(), run.input_size)
    return prepared[0].numpy()


def _draw_image(axis: Any, pixels: np.ndarray, sample: dict[str, Any]) -> None:
    axis.imshow(pixels)
    for xmin, ymin, xmax, ymax in sample["boxes"]:
        axis.add_patch(
            Rectangle(
                (xmin - 0.5, ymin - 0.5), xmax - xmin, ymax - ymin, fill=False, edgecolor="lime", linewidth=1
            )
        )
    _bare(axis, f"class {sample['target']}, {100 * (sample['confidence'] or 0):.0f} %")


def _draw_map(axis: Any, pixels: np.ndarray, saliency: np.ndarray) -> None:
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)
    if np.isfinite(saliency).all():
        axis.imshow(saliency, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
        _bare(axis, "")
    else:
        _bare(axis, "no map")


def _bare(axis: Any, below: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(below, fontsize=7)
