"""What a run's pictures are made of: an image with its boxes, and maps laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from storage.files import replacing
from storage.maps import read
from storage.run import Run
from tasks.metrics.preparation import prepare

INCHES = 1.5  # width of one cell
LINE_INCHES = 0.18  # height of one line of text


def pixels_of(run: Run, image: int) -> np.ndarray:
    """(H, W, 3) uint8, the run's input in that row."""
    return np.moveaxis(read(run.inputs, image, image + 1)[0], 0, -1)


def map_of(run: Run, explainer: str, row: int) -> np.ndarray:
    """(H, W) in [0, 1], an explainer's map in that row, as the metrics read it; NaN where there is none."""
    raw = torch.from_numpy(read(run.saliency(explainer) / "maps", row, row + 1))
    prepared, _ = prepare(raw.float(), run.input_size)
    return prepared[0].numpy()


def sheet(
    rows: int, columns: int, size: tuple[int, int], *, above: int, below: int
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes, for inputs of ``size`` (H, W).

    There is room for ``above`` lines of text over the first row and ``below`` lines under every row.
    """
    cell = INCHES * size[0] / size[1] + LINE_INCHES * below
    figure = Figure(figsize=(INCHES * columns, cell * rows + LINE_INCHES * above), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_image(axis: Any, pixels: np.ndarray, sample: dict[str, Any], target: int) -> None:
    """The image with its boxes; below it the class explained and how sure of it the model is.

    The confidence is known of the predicted class alone; of another one, the prediction is told.
    """
    axis.imshow(pixels)
    for xmin, ymin, xmax, ymax in sample["boxes"]:
        axis.add_patch(
            Rectangle(
                (xmin - 0.5, ymin - 0.5), xmax - xmin, ymax - ymin, fill=False, edgecolor="lime", linewidth=1
            )
        )
    predicted = sample["prediction"]
    known = f", {100 * sample['confidence']:.0f} %" if target == predicted else f" (predicted {predicted})"
    _label(axis, f"class {target}{known}")


def draw_map(axis: Any, pixels: np.ndarray, saliency: np.ndarray, below: str = "") -> None:
    """A map (H, W) in [0, 1] over the grey image; where it is not finite, the image and "no map"."""
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)
    there = np.isfinite(saliency).all()
    if there:
        axis.imshow(saliency, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    _label(axis, below if there else "no map")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, dpi=110, format="png")


def _label(axis: Any, below: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(below, fontsize=7)
