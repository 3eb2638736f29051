"""What a run's pictures are made of: an image with its boxes, maps over it, and the words beside them."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from storage.files import replacing
from storage.maps import read
from storage.run import Run
from tasks.metrics.preparation import prepare

INCHES = 1.5  # width of one cell
LINE_INCHES = 0.18  # height of one line of text
DPI = 110
# Behind words and lines: white where nothing is salient, then colours of the maps over images, darkening.
BEHIND = LinearSegmentedColormap.from_list(
    "behind", ["white", *colormaps["inferno"](np.linspace(0.9, 0.4, 6))]
)
SCALE = "saliency from 0 (white) to 1 (darkest)"


def pixels_of(run: Run, image: int) -> np.ndarray:
    """(H, W, 3) uint8, the run's input in that row."""
    return np.moveaxis(read(run.inputs, image, image + 1)[0], 0, -1)


def map_of(run: Run, explainer: str, row: int) -> np.ndarray:
    """An explainer's map in that row over the input's sites, as the metrics read it.

    (\\*sites) in [0, 1]; negative where a site cannot be hidden, NaN throughout where there is no map.
    """
    raw = torch.from_numpy(read(run.saliency(explainer) / "maps", row, row + 1))
    prepared, _ = prepare(raw.float(), run.input_size, _sites(run, row // run.targets_per_image))
    return prepared[0].numpy()


def _sites(run: Run, image: int) -> torch.Tensor | None:
    """(1, \\*sites) bool, what can be hidden: of a text the tokens that belong to a word; None is all."""
    if run.modality != "text":
        return None
    return torch.from_numpy(read(run.inputs, image, image + 1)[:, 1] >= 0)


def sheet(
    rows: int, columns: int, size: tuple[int, ...], *, above: int, below: int
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes, for inputs of ``size`` (H, W).

    There is room for ``above`` lines of text over the first row and ``below`` lines under every row.
    """
    cell = INCHES * size[0] / size[1] + LINE_INCHES * below
    figure = Figure(figsize=(INCHES * columns, cell * rows + LINE_INCHES * above), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_image(axis: Any, pixels: np.ndarray, sample: dict[str, Any], target: int) -> None:
    """The image with its boxes; below it the class explained and how sure of it the model is."""
    axis.imshow(pixels)
    for xmin, ymin, xmax, ymax in sample["boxes"]:
        axis.add_patch(
            Rectangle(
                (xmin - 0.5, ymin - 0.5), xmax - xmin, ymax - ymin, fill=False, edgecolor="lime", linewidth=1
            )
        )
    _label(axis, _explained(sample, target))


def draw_map(axis: Any, pixels: np.ndarray, saliency: np.ndarray, below: str = "") -> None:
    """A map (H, W) in [0, 1] over the grey image; where it is not finite, the image and "no map"."""
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)
    there = np.isfinite(saliency).all()
    if there:
        axis.imshow(saliency, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    _label(axis, below if there else "no map")


def heading(sample: dict[str, Any]) -> str:
    """What is written over a text or a tensor: its id, the class explained, its label if it has one."""
    label = "" if sample["label"] is None else f", label {sample['label']}"
    return f"{sample['sample_id']}: {_explained(sample, sample['target'])}{label}"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; what no font can draw stands there as a box."""
    with replacing(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        FigureCanvasAgg(figure).print_figure(partial, dpi=DPI, format="png")


def small_copy(picture: bytes, most: int) -> bytes:
    """A picture as WebP of at most ``most`` bytes, as wide as that allows; 1,600 by 16,000 pixels at most."""
    with Image.open(BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    width = max(1, min(image.width, 1600, 16_000 * image.width // image.height))
    while True:
        encoded = BytesIO()
        size = (width, max(1, round(image.height * width / image.width)))
        image.resize(size, Image.Resampling.LANCZOS).save(encoded, "WEBP", quality=85)
        if encoded.tell() <= most or width == 1:
            return encoded.getvalue()
        width = max(1, width * 3 // 4)


def _explained(sample: dict[str, Any], target: int) -> str:
    """The confidence is known of the predicted class alone; of another one, the prediction is told."""
    predicted = sample["prediction"]
    known = f", {100 * sample['confidence']:.0f} %" if target == predicted else f" (predicted {predicted})"
    return f"class {target}{known}"


def _label(axis: Any, below: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(below, fontsize=7)
