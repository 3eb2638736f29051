"""What the page says about one sample: its picture, its maps, its scores, and what explainers tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from explainers.controls import CONTROLS
from storage.characters import shown
from storage.maps import read_rows
from storage.run import Run
from storage.samples import read_samples_of_shard
from tasks.objects import boxes_of, masks_of
from tasks.page.charts.looks import Look
from tasks.page.picture_data import Link, map_png, mask_png, palette_of, reduced, webp
from tasks.page.sample_details import DetailsOf, Told
from tasks.page.sample_scores import Curves, ScoreRow, ScoresOf
from tasks.page.sequences import Series, Token, series_of, shaded_tokens, token_texts
from tasks.page.stored_maps import StoredMap, stored_maps
from tasks.pictures.drawing import coloured, explained, label_of, told_bands

_SIDE = 256  # pixels of the longer side of an input in the page, at most
_CELLS = 1_900_000  # of all maps in the page together, which bounds its size: about one byte each
_SIDES = (14, 64)  # cells per side of a map in the page: at least, at most
_TOKENS = 60_000  # that are shaded in the page, at most


@dataclass(frozen=True)
class Named:
    """An explainer as the page shows it: its name, and the colour and dashes that charts give it."""

    name: str
    control: bool
    colour: str
    dashes: str


@dataclass(frozen=True)
class ShownMap:
    """One map.

    Attributes
    ----------
    by
        Its explainer.
    picture
        Address of the map's picture; empty for texts, and if there is no map.
    tokens
        The shaded tokens of a text.
    told
        What to say about the map; why there is none, if ``there`` is False.
    grid, range
        The grid of the map, and of its picture if that has fewer cells; its values, in words.
    slope, shift
        On the scale that all maps of the sample share, the level v of this map is slope * v + shift.
    """

    by: Named
    there: bool
    picture: str
    tokens: list[Token]
    told: str
    grid: str
    range: str
    slope: float
    shift: float


@dataclass(frozen=True)
class Target:
    """One explained class of a sample, with its maps.

    ``boxes`` are (x, y, width, height) in pixels of the input; ``mask`` is the address of its picture.
    """

    title: str
    maps: list[ShownMap]
    boxes: list[tuple[float, float, float, float]]
    mask: str
    scores: list[ScoreRow]
    curves: list[Curves]
    details: list[Told]


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes
    ----------
    key
        What identifies it in the page.
    name, label
        Its id; its label in words, empty if it has none.
    error
        Why nothing is known about it; empty if it was read.
    notes
        What was done to the input.
    picture, size
        Address of its picture, and (height, width) of the input in pixels; empty and (0, 0) unless it is an
        image.
    series
        The lines or bars of a tensor.
    """

    key: str
    name: str
    modality: str
    label: str
    error: str
    notes: list[str]
    picture: str
    size: tuple[int, ...]
    series: Series | None
    targets: list[Target]


def named(run: Run) -> list[Named]:
    """The explainers of a run, in order."""
    look = Look.of(run)
    looks = dict(zip(look.names, zip(look.colours, look.dashes, strict=True), strict=True))
    return [
        Named(shown(name), (entry.name or name) in CONTROLS, colour, " ".join(map(str, dashes)))
        for name, entry in run.explainers.items()
        for colour, dashes in [looks[shown(name)]]
    ]


def samples_of(run: Run, rows: Sequence[int], link: Link) -> list[Sample]:
    """Say everything about some samples of a run, given by their index in it.

    All that is read of one array is read together. The pictures of many maps are reduced, so that a page of
    48 samples stays small.
    """
    known = _read_samples(run, rows)
    maps = [
        row * run.targets_per_image + place
        for row in rows
        for place in range(len(known[row]["targets"] or ()))
    ]
    shown_maps = _maps(run, known, maps, link)
    scores, details = ScoresOf(run, maps), DetailsOf(run, maps, link)
    masks = _masks(run, known, maps, link)
    usable = [row for row in rows if known[row]["status"] == "ok"]
    values = dict(zip(usable, read_rows(run.inputs, usable), strict=True)) if usable else {}
    found = []
    for row in rows:
        sample = known[row]
        targets = [
            Target(
                title=explained(sample, target),
                maps=shown_maps[at],
                boxes=[(x, y, right - x, below - y) for x, y, right, below in boxes_of(sample, target)],
                mask=masks.get(at, ""),
                scores=scores.rows_of(at),
                curves=scores.curves_of(at),
                details=details.of(at),
            )
            for place, target in enumerate(sample["targets"] or ())
            for at in [row * run.targets_per_image + place]
        ]
        found.append(_sample(run, row, sample, values.get(row), targets, tokens_shown(run, len(rows)), link))
    return found


def cells_per_side(run: Run, samples: int) -> int:
    """The most cells along a side of a map's picture, for a page with this number of samples."""
    count = max(1, samples) * run.targets_per_image * max(1, len(run.explainers))
    if len(run.input_size) == 1:
        return min(256, max(_SIDES[0], _CELLS // count))
    return min(_SIDES[1], max(_SIDES[0], int((_CELLS / count) ** 0.5)))


def tokens_shown(run: Run, samples: int) -> int:
    """The most tokens of a text that are shown, for a page with this number of samples."""
    count = max(1, samples) * run.targets_per_image * max(1, len(run.explainers))
    return max(40, _TOKENS // count)


def _read_samples(run: Run, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The rows of the samples by their index in the run; every shard is read once."""
    size = run.manifest.shard_rows
    shards = {
        shard: read_samples_of_shard(run.root, shard) for shard in sorted({row // size for row in rows})
    }
    return {row: shards[row // size][row % size] for row in rows}


def _sample(
    run: Run,
    row: int,
    sample: dict[str, Any],
    values: NDArray[Any] | None,
    targets: list[Target],
    tokens: int,
    link: Link,
) -> Sample:
    error = "" if sample["status"] == "ok" else shown(sample["error"] or "it could not be read")
    if not error and not targets:
        error = shown(sample["error"] or "it has no label, so that nothing is explained")
    picture = ""
    if run.modality == "image" and values is not None:
        bands = tuple(run.job.get("shown_bands") or ())
        picture = link(f"image/{row}.webp", partial(_image, values, bands))
    notes = [shown(note) for note in sample["notes"] or ()]
    count, read = len(sample["tokens"] or ()), sample["width"] or 0
    if run.modality == "text" and count < read:
        notes.append(f"the model reads the first {count:,} of {read:,} tokens")
    if run.modality == "text" and tokens < count:
        notes.append(f"the first {tokens:,} of {count:,} tokens are shown")
    return Sample(
        key=f"sample-{row}",
        name=shown(sample["sample_id"]),
        modality=run.modality,
        label=label_of(sample) or "",
        error=error,
        notes=notes,
        picture=picture,
        size=run.input_size if run.modality == "image" else (0, 0),
        series=series_of(values) if run.modality == "tensor" and values is not None else None,
        targets=targets,
    )


def _image(values: NDArray[Any], bands: tuple[int, ...]) -> bytes:
    return webp(coloured(values, bands), _SIDE)


def _maps(
    run: Run, known: dict[int, dict[str, Any]], rows: Sequence[int], link: Link
) -> dict[int, list[ShownMap]]:
    """The maps of all explainers at these rows of maps; one explainer's maps are in memory at a time."""
    found: dict[int, list[ShownMap]] = {row: [] for row in rows}
    most = cells_per_side(run, len(known))
    for by, name in zip(named(run), run.explainers, strict=True):
        stored = stored_maps(run, name, rows)
        pictures = {} if run.modality == "text" else _pictures(run, name, rows, stored, most, link)
        tokens = _tokens(run, known, rows, stored) if run.modality == "text" else {}
        grid = _grid(run.explainers[name].grid, most, text=run.modality == "text")
        for row, each in zip(rows, stored, strict=True):
            found[row].append(
                ShownMap(
                    by=by,
                    there=each.levels is not None,
                    picture=pictures.get(row, ""),
                    tokens=tokens.get(row, []),
                    told=shown(each.told),
                    grid=grid,
                    range=f"{each.low:.3g} to {each.high:.3g}",
                    slope=each.high - each.low,
                    shift=each.low,
                )
            )
    return {row: _on_one_scale(each) for row, each in found.items()}


def _on_one_scale(maps: list[ShownMap]) -> list[ShownMap]:
    """The maps of a sample, with ``slope`` and ``shift`` divided by the largest value of any of them."""
    highest = max((each.slope + each.shift for each in maps if each.there), default=0) or 1
    return [
        ShownMap(**{**vars(each), "slope": each.slope / highest, "shift": each.shift / highest})
        for each in maps
    ]


def _pictures(
    run: Run, name: str, rows: Sequence[int], stored: Sequence[StoredMap], most: int, link: Link
) -> dict[int, str]:
    """The addresses of the pictures of an explainer's maps, by row of maps."""
    there = {row: each.levels for row, each in zip(rows, stored, strict=True) if each.levels is not None}
    if not there:
        return {}
    small = reduced(torch.from_numpy(np.stack(list(there.values()))), most).numpy()
    palette = palette_of(run.modality)
    return {
        row: link(f"map/{name}/{row}.png", partial(map_png, np.atleast_2d(levels), palette))
        for row, levels in zip(there, small, strict=True)
    }


def _tokens(
    run: Run, known: dict[int, dict[str, Any]], rows: Sequence[int], stored: Sequence[StoredMap]
) -> dict[int, list[Token]]:
    images = [row // run.targets_per_image for row in rows]
    limit = tokens_shown(run, len(known))
    found = {}
    for row, each, (ids, words) in zip(
        rows, stored, read_rows(run.inputs, images) if rows else (), strict=True
    ):
        texts = token_texts(known[row // run.targets_per_image]["tokens"], words[ids >= 0].tolist())
        if each.levels is not None:
            found[row] = shaded_tokens(texts, each.levels[ids >= 0])[:limit]
    return found


def _masks(run: Run, known: dict[int, dict[str, Any]], rows: Sequence[int], link: Link) -> dict[int, str]:
    """The addresses of the masks that count for these rows of maps; a mask without any pixel is left out."""
    if not run.manifest.masks or not rows:
        return {}
    k = run.targets_per_image
    samples = [known[row // k] for row in rows]
    targets = [sample["targets"][row % k] for sample, row in zip(samples, rows, strict=True)]
    stored = torch.from_numpy(read_rows(run.masks, [row // k for row in rows]))
    masks = masks_of(stored, samples, targets).numpy()
    return {
        row: link(f"mask/{row}.png", partial(mask_png, mask))
        for row, mask in zip(rows, masks, strict=True)
        if mask.any()
    }


def _grid(grid: Sequence[int], most: int, *, text: bool) -> str:
    told = " x ".join(map(str, grid))
    small = [min(side, most) for side in grid]
    if text or small == list(grid):
        return told
    return f"{told}, shown as {' x '.join(map(str, small))}"


def bands_told(run: Run) -> str:
    """Which bands the pictures of inputs show, in words; empty for plain colours and other inputs."""
    return told_bands(run).replace("\n", ", ") if run.modality == "image" else ""
