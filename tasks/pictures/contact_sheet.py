"""Draws the contact sheet of a run: some of its samples, with the maps of every explainer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from storage.records import failures
from storage.run import Run
from storage.samples import each_sample, read_samples_of_shard
from tasks.pictures.drawing import (
    caption,
    draw_image,
    draw_map,
    draw_titles,
    map_of,
    pixels_of,
    save,
    sheet,
    told_bands,
)
from tasks.pictures.finding import found
from tasks.pictures.map_components import components_of, decomposing
from tasks.pictures.tensor_sheet import tensor_sheet
from tasks.pictures.text_sheet import text_sheet

SAMPLES = 8  # on the sheet, at most
COMPONENTS = 3  # shown per map, at most


def draw_contact_sheet(run: Run) -> None:
    """Write ``report/contact_sheet.png``, with samples spread evenly over those that have all maps.

    Maps are prepared as for the metrics. If a sample has several targets, the map of the first one is shown.
    Without any such sample no file is written.
    """
    samples = each_sample(run.root, ["status", "target"])
    lacking = {step.shard for step in failures(run.root) if run.layout.has(step)}
    usable = [
        row
        for row, sample in enumerate(samples)
        # An image without any label is ok and has no target.
        if sample["status"] == "ok" and sample["target"] is not None
        if row // run.manifest.shard_rows not in lacking
    ]
    if not usable:
        return
    spread = np.linspace(0, len(usable) - 1, min(SAMPLES, len(usable))).round().astype(int)
    wanted = [usable[i] for i in spread]
    shards = {row // run.manifest.shard_rows for row in wanted}
    read = {shard: read_samples_of_shard(run.root, shard) for shard in shards}
    chosen = {row: read[row // run.manifest.shard_rows][row % run.manifest.shard_rows] for row in wanted}
    save(sheet_of(run, chosen), run.report / "contact_sheet.png")


def draw_sample(run: Run, sample_id: str) -> Figure:
    """Draw one sample as on the contact sheet: with the map of every explainer for its first target.

    Raises
    ------
    ValueError
        In one line: the sample does not exist, could not be read, has no target or is not explained yet.
    """
    image, sample = found(run, sample_id, list(run.explainers))
    run.check_arrays(run.inputs, *map(run.saliency, run.explainers))
    return sheet_of(run, {image: sample})


def sheet_of(run: Run, chosen: dict[int, dict[str, Any]]) -> Figure:
    """The figure of some samples, by their index in the run."""
    drawn = {"image": _image_sheet, "text": text_sheet, "tensor": tensor_sheet}[run.modality]
    return drawn(run, chosen)


def _image_sheet(run: Run, chosen: dict[int, dict[str, Any]]) -> Figure:
    """One row per image: the image with its boxes, and the map of every explainer over the image.

    The strongest components of an explainer that decomposes follow its map, with their weights below.
    """
    shown = {name: _components_shown(run, name) for name in run.explainers}
    titles: list[str] = []
    for name, count in shown.items():
        titles += [name, *(f"component, rank {rank}" for rank in range(1, count + 1))]
    below = max(caption(sample, sample["target"]).count("\n") for sample in chosen.values()) + 1
    above = 1 + told_bands(run).count("\n")
    figure, axes = sheet(len(chosen), 1 + len(titles), run.input_size, above=above, below=below)
    for cells, (image, sample) in zip(axes, chosen.items(), strict=True):
        _draw_row(run, list(cells), image, sample, shown)
    draw_titles(run, axes[0], titles)
    return figure


def _components_shown(run: Run, explainer: str) -> int:
    """How many components of a map are shown: 0 if the explainer does not decompose."""
    if explainer not in decomposing(run):
        return 0
    return min(COMPONENTS, run.explainers[explainer].details["weights"].shape[0])


def _draw_row(run: Run, cells: list[Any], image: int, sample: dict[str, Any], shown: dict[str, int]) -> None:
    pixels, row = pixels_of(run, image), image * run.targets_per_image
    rest = iter(cells)
    draw_image(next(rest), pixels, sample, sample["target"])
    for name, count in shown.items():
        draw_map(next(rest), pixels, map_of(run, name, row))
        for component in components_of(run, name, row)[:count] if count else []:
            draw_map(next(rest), pixels, component.saliency, f"weight {component.weight:.3g}")
