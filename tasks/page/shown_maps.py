"""The maps of some samples in the words and addresses that the page's templates take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from storage.characters import shown
from storage.maps import read_rows
from storage.run import Run
from tasks.page.charts.looks import Look
from tasks.page.picture_data import Link, map_png, palette_of
from tasks.page.sequences import Token, shaded_tokens, token_texts
from tasks.page.stored_maps import StoredMap, stored_maps
from tasks.results.leaderboard import is_control
from tasks.results.numbers import column_of

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


def named(run: Run) -> list[Named]:
    """The explainers of a run, in order."""
    look = Look.of(run)
    looks = dict(zip(look.names, zip(look.colours, look.dashes, strict=True), strict=True))
    return [
        Named(shown(name), is_control(name, entry), colour, " ".join(map(str, dashes)))
        for name, entry in run.explainers.items()
        for colour, dashes in [looks[shown(name)]]
    ]


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


def maps_of(
    run: Run, known: dict[int, dict[str, Any]], rows: Sequence[int], link: Link
) -> dict[int, list[ShownMap]]:
    """The maps of all explainers at these rows of maps; one explainer's maps are in memory at a time."""
    found: dict[int, list[ShownMap]] = {row: [] for row in rows}
    highest = dict.fromkeys(rows, 0.0)
    most = cells_per_side(run, len(known))
    for by, name in zip(named(run), run.explainers, strict=True):
        stored = stored_maps(run, name, rows, None if run.modality == "text" else most)
        pictures = {} if run.modality == "text" else _pictures(run, name, rows, stored, link)
        tokens = _tokens(run, known, rows, stored) if run.modality == "text" else {}
        grid = _grid(run.explainers[name].grid, most, text=run.modality == "text")
        for row, each in zip(rows, stored, strict=True):
            highest[row] = max(highest[row], each.high)
            found[row].append(
                ShownMap(
                    by=by,
                    there=each.levels is not None,
                    picture=pictures.get(row, ""),
                    tokens=tokens.get(row, []),
                    told=shown(each.told),
                    grid=grid,
                    range=" to ".join(column_of([each.low, each.high])),
                    slope=each.top - each.bottom,
                    shift=each.bottom,
                )
            )
    return {row: _on_one_scale(each, highest[row] or 1) for row, each in found.items()}


def _on_one_scale(maps: list[ShownMap], highest: float) -> list[ShownMap]:
    """The maps of a sample, with ``slope`` and ``shift`` divided by the largest value of any of them."""
    return [replace(each, slope=each.slope / highest, shift=each.shift / highest) for each in maps]


def _pictures(
    run: Run, name: str, rows: Sequence[int], stored: Sequence[StoredMap], link: Link
) -> dict[int, str]:
    """The addresses of the pictures of an explainer's maps, by row of maps."""
    palette = palette_of(run.modality)
    return {
        row: link(f"map/{name}/{row}.png", partial(map_png, np.atleast_2d(each.levels), palette))
        for row, each in zip(rows, stored, strict=True)
        if each.levels is not None
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


def _grid(grid: Sequence[int], most: int, *, text: bool) -> str:
    told = " x ".join(map(str, grid))
    small = [min(side, most) for side in grid]
    if text or small == list(grid):
        return told
    return f"{told}, shown as {' x '.join(map(str, small))}"


def averaging_told(run: Run, samples: int) -> str:
    """What is averaged in the pictures of a page with this number of samples, in words; else empty."""
    most = cells_per_side(run, samples)
    if run.modality == "text" or all(max(entry.grid) <= most for entry in run.explainers.values()):
        return ""
    return (
        f"Maps of more than {most} cells along a side are shown as means of neighbouring cells, which are "
        "stretched again."
    )
