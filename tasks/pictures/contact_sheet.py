"""One picture of a run: some of its samples, and every explainer's maps of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from storage.records import failures
from storage.run import Run
from storage.scores import read_samples
from tasks.pictures.drawing import draw_image, draw_map, map_of, pixels_of, save, sheet
from tasks.pictures.map_components import components_of, decomposing
from tasks.pictures.tensor_sheet import tensor_sheet
from tasks.pictures.text_sheet import text_sheet

SAMPLES = 8
COMPONENTS = 3


def draw_contact_sheet(run: Run) -> None:
    """Write ``report/contact_sheet.png``: some samples, spread evenly over those with all maps.

    Maps are read as the metrics read them; where a sample has several targets the first one's map is shown.
    """
    samples = read_samples(run.root)
    lacking = {step.shard for step in failures(run.root)}
    usable = [
        row
        for row, sample in enumerate(samples)
        if sample["status"] == "ok" and row // run.manifest.shard_rows not in lacking
    ]
    if not usable:
        return
    spread = np.linspace(0, len(usable) - 1, min(SAMPLES, len(usable))).round().astype(int)
    chosen = {usable[i]: samples[usable[i]] for i in spread}
    drawn = {"image": _image_sheet, "text": text_sheet, "tensor": tensor_sheet}[run.modality]
    save(drawn(run, chosen), run.report / "contact_sheet.png")


def _image_sheet(run: Run, chosen: dict[int, dict[str, Any]]) -> Figure:
    """A row per image: the image with its boxes, and every explainer's map laid over it.

    The strongest components of a decomposing explainer follow its map, their weights below them.
    """
    shown = {name: _components_shown(run, name) for name in run.explainers}
    titles = [""]
    for name, count in shown.items():
        titles += [name, *(f"component, rank {rank}" for rank in range(1, count + 1))]
    figure, axes = sheet(len(chosen), len(titles), run.input_size, above=1, below=1)
    for cells, (image, sample) in zip(axes, chosen.items(), strict=True):
        _draw_row(run, list(cells), image, sample, shown)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def _components_shown(run: Run, explainer: str) -> int:
    if explainer not in decomposing(run):
        return 0
    return min(COMPONENTS, run.explainers[explainer]["details"]["weights"]["shape"][0])


def _draw_row(run: Run, cells: list[Any], image: int, sample: dict[str, Any], shown: dict[str, int]) -> None:
    pixels, row = pixels_of(run, image), image * run.targets_per_image
    rest = iter(cells)
    draw_image(next(rest), pixels, sample, sample["target"])
    for name, count in shown.items():
        draw_map(next(rest), pixels, map_of(run, name, row))
        for component in components_of(run, name, row)[:count] if count else []:
            draw_map(next(rest), pixels, component.saliency, f"weight {component.weight:.3g}")
