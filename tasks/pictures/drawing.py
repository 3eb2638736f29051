"""The parts of a run's pictures: figures, images with boxes, maps over images, and their captions."""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from storage.characters import shown
from storage.files import replacing
from storage.maps import read
from storage.run import Run

INCHES = 1.5  # width of one cell
LINE = 24  # characters of a line below an image, at most; a longer one would run into its neighbours
LINE_INCHES = 0.18  # height of one line of text
_PERCENTILES = (2, 98)  # of a band of more than 8 bits: what is black and white in a picture
DPI = 110
# The background of words and lines: white where nothing is salient, then darker and darker colours of the
# colour map that is laid over images.
BEHIND = LinearSegmentedColormap.from_list(
    "behind", ["white", *colormaps["inferno"](np.linspace(0.9, 0.4, 6))]
)
SCALE = "saliency from 0 (white) to 1 (darkest)"


def pixels_of(run: Run, image: int) -> np.ndarray:
    """The image at this index of the run, (H, W, 3) uint8: the bands that the job shows."""
    return coloured(read(run.inputs, image, image + 1)[0], shown_bands(run))


def coloured(values: np.ndarray, shown: tuple[int, ...] = ()) -> np.ndarray:
    """The bands of an image (C, H, W) that are shown, (H, W, 3) uint8; by default its first ones.

    Values of more than 8 bits are stretched from the 2nd to the 98th percentile of each band.
    """
    bands = values[list(shown or _first(len(values)))]
    if bands.dtype != np.uint8:
        low, high = np.percentile(bands, _PERCENTILES, axis=(1, 2), keepdims=True)
        shares = (bands - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
        bands = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return np.moveaxis(np.broadcast_to(bands, (3, *bands.shape[1:])), 0, -1)


def told_bands(run: Run) -> str:
    """What :func:`pixels_of` shows, in two lines; empty for plain colours."""
    bands, manifest = shown_bands(run), run.manifest
    if manifest.input_shape[0] == 3 and manifest.input_dtype == "uint8" and bands == (0, 1, 2):
        return ""
    named = f"band {bands[0]}" if len(bands) == 1 else f"bands {', '.join(map(str, bands))} as RGB"
    stretched = "" if manifest.input_dtype == "uint8" else "2nd to 98th percentile"
    return f"{named}\n{stretched}".rstrip()


def shown_bands(run: Run) -> tuple[int, ...]:
    """The bands that pictures show: one, or three as red, green and blue."""
    given = run.job.get("shown_bands")  # runs of earlier versions have no such key
    return tuple(given or _first(run.manifest.input_shape[0]))


def _first(channels: int) -> tuple[int, ...]:
    return (0, 1, 2) if channels >= 3 else (0,)


def draw_titles(run: Run, axes: Any, titles: list[str]) -> None:
    """Write above the first column which bands it shows, and the titles above the others."""
    axes[0].set_title(told_bands(run), fontsize=7)
    for axis, title in zip(axes[1:], titles, strict=True):
        axis.set_title(title, fontsize=9)


def map_of(run: Run, explainer: str, row: int) -> np.ndarray:
    """The map of an explainer at this row, (\\*sites) in [0, 1], prepared as for the metrics.

    It is negative where a site cannot be hidden, and all NaN if there is no map.

    Parameters
    ----------
    row
        Index of the map: that of its image times the targets per image, plus that of the target.
    """
    import torch  # imported late, because the pages of the browser do without it

    from explainers.models.modality import MODALITIES
    from tasks.metrics.preparation import prepare

    raw = torch.from_numpy(read(run.saliency(explainer) / "maps", row, row + 1))
    image = row // run.targets_per_image
    sites = MODALITIES[run.modality].sites(torch.from_numpy(read(run.inputs, image, image + 1)))
    prepared, _ = prepare(raw.float(), run.input_size, sites)
    return prepared[0].numpy()


def sheet(
    rows: int, columns: int, size: Sequence[float], *, above: int, below: int, inches: float = INCHES
) -> tuple[Figure, np.ndarray]:
    """Make a figure and its (rows, columns) axes.

    Parameters
    ----------
    size
        (H, W) of the inputs, which gives the cells their shape.
    above
        Lines of text above the first row.
    below
        Lines of text below every row.
    inches
        Width of a cell.
    """
    cell = inches * size[0] / size[1] + LINE_INCHES * below
    figure = Picture(figsize=(inches * columns, cell * rows + LINE_INCHES * above), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_image(axis: Any, pixels: np.ndarray, sample: dict[str, Any], target: int) -> None:
    """Draw the image (H, W, 3) uint8 with its boxes, and :func:`caption` below it."""
    axis.imshow(pixels)
    draw_boxes(axis, sample["boxes"])
    # A name may contain dollar signs, which Matplotlib would read as mathematics.
    label_below(axis, caption(sample, target), math=False)


def draw_boxes(axis: Any, boxes: Iterable[Sequence[float]]) -> None:
    """Draw boxes (xmin, ymin, xmax, ymax) over an image, in its pixels."""
    for xmin, ymin, xmax, ymax in boxes:
        axis.add_patch(
            Rectangle(
                (xmin - 0.5, ymin - 0.5), xmax - xmin, ymax - ymin, fill=False, edgecolor="lime", linewidth=1
            )
        )


def caption(sample: dict[str, Any], target: int) -> str:
    """The short lines below an image.

    They give the target with its confidence, or with the prediction if that is another class, the names of
    the classes that have one, and the label if it is not the target.
    """
    predicted, names = sample["prediction"], sample.get("target_names")
    lines = [explained(sample, target)]
    if names:
        share = _share(sample) if target == predicted else ""
        name = names[sample["targets"].index(target)]  # None where the model has more classes than names
        lines = [f"class {target}{share}", *([] if name is None else [shown(name)])]
        if target != predicted:
            lines.append(f"predicted {_numbered(predicted, sample.get('prediction_name'))}")
    if sample.get("label") != target and (label := label_of(sample)) is not None:
        lines.append(f"label {label}")
    return "\n".join(line if len(line) <= LINE else f"{line[: LINE - 1]}…" for line in lines)


def draw_map(axis: Any, pixels: np.ndarray, saliency: np.ndarray, below: str = "") -> None:
    """Draw a map (H, W) in [0, 1] over the grey image; if it is not finite, the image and "no map"."""
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=255)
    there = np.isfinite(saliency).all()
    if there:
        axis.imshow(saliency, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    label_below(axis, below if there else "no map")


def heading(sample: dict[str, Any]) -> str:
    """The heading of a text or a tensor: its id, its target, and its label if it has one."""
    told = label_of(sample)
    label = "" if told is None else f", label {told}"
    return f"{shown(sample['sample_id'])}: {explained(sample, sample['target'])}{label}"


def label_of(sample: dict[str, Any]) -> str | None:
    """The label of a sample with its name; None if it has none."""
    label, name = sample.get("label"), sample.get("label_name")
    if label is None:
        return shown(name) if name else None
    return _numbered(label, None if name == str(label) else name)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all. Characters that no font has are drawn as boxes."""
    with replacing(path) as partial:
        _print(figure, partial)


def _print(figure: Figure, file: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        FigureCanvasAgg(figure).print_figure(file, dpi=DPI, format="png")


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_html_(self) -> str:
        file = BytesIO()
        _print(self, file)
        return f'<img alt="maps" src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'


def small_copy(picture: bytes, most: int) -> bytes:
    """A copy of a picture as WebP, as wide as fits into ``most`` bytes; at most 1,600 by 16,000 pixels."""
    with Image.open(BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    width = max(1, min(image.width, 1600, 16_000 * image.width // image.height))
    while True:  # the size in bytes is only known after encoding
        encoded = BytesIO()
        size = (width, max(1, round(image.height * width / image.width)))
        image.resize(size, Image.Resampling.LANCZOS).save(encoded, "WEBP", quality=85)
        if encoded.tell() <= most or width == 1:
            return encoded.getvalue()
        width = max(1, width * 3 // 4)


def explained(sample: dict[str, Any], target: int) -> str:
    """The target and its confidence. For a target that is not predicted, the prediction stands instead."""
    predicted, names = sample["prediction"], sample.get("target_names")
    name = names[sample["targets"].index(target)] if names else None
    told = f"class {_numbered(target, name)}"
    if target == predicted:
        return f"{told}{_share(sample)}"
    return f"{told} (predicted {_numbered(predicted, sample.get('prediction_name') if names else None)})"


def _share(sample: dict[str, Any]) -> str:
    """The probability of the predicted class, as what follows the class."""
    return f", {100 * sample['confidence']:.0f} %"


def _numbered(number: int, name: str | None) -> str:
    """The number of a class and, if it is known, its name."""
    return str(number) if name is None else f"{number} {shown(name)}"


def label_below(axis: Any, below: str, *, math: bool = True) -> None:
    """Write lines below an image; ``math`` says whether dollar signs are mathematics."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(below, fontsize=7, parse_math=math)
