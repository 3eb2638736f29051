"""Draws the components of one sample with their weights, e.g. DecomCAM's orthogonal sub-saliency maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from storage.characters import shown
from storage.run import Run
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
from tasks.pictures.map_components import Component, components_of, decomposing


def draw_components(
    run: Run, sample_id: str, explainer: str | None = None, output: Path | None = None
) -> Path:
    """Write the picture of a sample's components and return its path.

    Parameters
    ----------
    run
        The run. It need not be complete, but the sample's shard has to be explained.
    sample_id
        The sample.
    explainer
        One that decomposes its maps. It may be left out if the run has only one.
    output
        Path of the PNG file. By default ``report/components/<explainer>-<sample id>.png``; characters that
        do not belong into a file name become ``%`` and a hexadecimal number.

    Raises
    ------
    ValueError
        In one line: the explainer does not exist or does not decompose; the sample does not exist, could not
        be read, has no target or is not explained yet; or the picture cannot be written.
    """
    name = _chosen(run, explainer)
    image, sample = found(run, sample_id, [name])
    run.check_arrays(run.inputs, run.saliency(name))
    path = output or run.report / "components" / f"{_file_name(f'{name}-{sample_id}')}.png"
    figure = components_figure(run, name, image, sample)
    try:
        save(figure, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return path


def components_figure(run: Run, explainer: str, image: int, sample: dict[str, Any]) -> Figure:
    """The figure: one row per target, with the image, the map and all components by descending weight.

    Parameters
    ----------
    image
        Index of the image in the run.
    sample
        Its row of the samples.
    """
    first = image * run.targets_per_image
    pixels = pixels_of(run, image)
    parts = [components_of(run, explainer, first + place) for place in range(len(sample["targets"]))]
    below = max(2, *(caption(sample, target).count("\n") + 1 for target in sample["targets"]))
    figure, axes = sheet(
        len(parts), 2 + len(parts[0]), run.input_size, above=2 + told_bands(run).count("\n"), below=below
    )
    for place, (cells, target) in enumerate(zip(axes, sample["targets"], strict=True)):
        draw_image(cells[0], pixels, sample, target)
        draw_map(cells[1], pixels, map_of(run, explainer, first + place))
        for axis, component in zip(cells[2:], parts[place], strict=True):
            draw_map(axis, pixels, component.saliency, _caption(component))
    draw_titles(run, axes[0], ["map", *(f"rank {rank}" for rank in range(1, len(parts[0]) + 1))])
    # An id may contain dollar signs, which Matplotlib would read as mathematics.
    title = f"{explainer}, components of {shown(sample['sample_id'])}"
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def _caption(component: Component) -> str:
    """The weight of a component, and its gain d and its share of the singular values if they are stored."""
    more = [] if component.gain is None else [f"d {component.gain:.3g}"]
    more += [] if component.share is None else [rf"$\sigma$ {100 * component.share:.0f} %"]
    return f"weight {component.weight:.3g}\n{', '.join(more)}".rstrip()


def _chosen(run: Run, explainer: str | None) -> str:
    """The given explainer, or the only one of the run that decomposes; otherwise a ValueError."""
    able = decomposing(run)
    if explainer in able:
        return explainer
    if explainer is not None and explainer not in run.explainers:
        raise ValueError(f"{run.root} has no explainer {explainer!r}; it has {', '.join(run.explainers)}")
    if not able:
        raise ValueError(
            f"no explainer of {run.root} decomposes its maps; it has {', '.join(run.explainers)}; add one "
            f"that does, such as decomcam, to the job"
        )
    if explainer is not None:
        raise ValueError(f"{explainer} does not decompose its maps; choose from {', '.join(able)}")
    if len(able) > 1:
        raise ValueError(f"several explainers of the run decompose their maps; name one: {', '.join(able)}")
    return able[0]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]", lambda found: f"%{ord(found[0]):02x}", text)
