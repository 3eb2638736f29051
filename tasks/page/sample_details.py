"""What explainers tell about a sample besides their maps, for example the units that DD-CAM keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.statuses import STATUSES, Status
from storage.characters import shown
from storage.maps import read_rows
from storage.records import Step, is_finished
from storage.run import Run
from tasks.page.picture_data import INFERNO, Link, map_png
from tasks.page.sample_scores import HEIGHT, WIDTH
from tasks.pictures.map_components import components_from, decomposing
from tasks.results.numbers import number

_UNITS = 60  # numbers of units that are listed, at most
_COMPONENTS = 10  # that are shown, at most
_WITH_MAP = {STATUSES.index(status) for status in (Status.OK, Status.ALL_ZERO, Status.CONSTANT)}


@dataclass(frozen=True)
class Kept:
    """The units that DD-CAM keeps, their number among ``units``, and whether the head certifies the set."""

    kept: int
    units: int
    numbers: str
    certified: bool


@dataclass(frozen=True)
class ShownComponent:
    """One component: the address of its picture, and its weight, gain and share as far as they are stored."""

    picture: str
    lines: list[str]


@dataclass(frozen=True)
class Uncovering:
    """The cells that MoXI chose one by one.

    Attributes
    ----------
    mode
        "insertion": cells are uncovered; "deletion": cells are covered.
    grid
        (rows, columns) of cells.
    order, confidence
        The cells in their order, numbered in row-major order, and the probability of the target after each of
        them, as comma-separated numbers.
    count
        The number of chosen cells.
    found
        How many cells it took until the prediction flipped, in words.
    start
        The number of chosen cells in the still picture.
    cover
        The ``d`` of an SVG path that covers the cells that are absent after ``start`` steps; its units are
        cells.
    points
        The confidence as ``points`` of an SVG polyline.
    told
        The confidence after ``start`` steps, in words.
    """

    mode: str
    grid: tuple[int, int]
    order: str
    confidence: str
    count: int
    found: str
    start: int
    cover: str
    points: str
    told: str


@dataclass(frozen=True)
class Told:
    """What one explainer tells about one map; ``numbers`` are its other details that are single numbers."""

    explainer: str
    kept: Kept | None
    components: list[ShownComponent]
    uncovered: list[Uncovering]
    numbers: list[tuple[str, str]]


class DetailsOf:
    """The details of some rows of maps; those of one explainer are read together."""

    def __init__(self, run: Run, rows: Sequence[int], link: Link) -> None:
        self._run, self._link = run, link
        self._decomposing = decomposing(run)
        each = run.manifest.shard_rows * run.targets_per_image
        self._details: dict[str, dict[int, dict[str, Any]]] = {}
        for name, entry in run.explainers.items():
            if not entry.details:
                continue
            steps = {row: Step("saliency", row // each, name) for row in rows}
            done = {step for step in set(steps.values()) if is_finished(run.root, step)}
            there = [row for row in rows if steps[row] in done]
            if not there:
                continue
            # What a map that failed would have as details is zero, which is no result.
            status = read_rows(run.saliency(name) / "status", there)
            there = [row for row, code in zip(there, status, strict=True) if int(code) in _WITH_MAP]
            folder = run.saliency(name) / "details"
            read = {key: read_rows(folder / key, there) for key in entry.details} if there else {}
            self._details[name] = {
                row: {key: values[i] for key, values in read.items()} for i, row in enumerate(there)
            }

    def of(self, row: int) -> list[Told]:
        """What every explainer tells about the map at this row."""
        found = []
        for name, known in self._details.items():
            if row in known:
                told = self._told(name, row, known[row])
                if told.kept or told.components or told.uncovered or told.numbers:
                    found.append(told)
        return found

    def _told(self, name: str, row: int, details: dict[str, Any]) -> Told:
        entry = self._run.explainers[name]
        special = {"kept", "certificate"} if "unit_mask" in details else set()
        special |= {key for key in details if key.endswith("_steps") and f"{key[:-6]}_order" in details}
        return Told(
            explainer=shown(name),
            kept=_kept(details) if {"unit_mask", "kept", "certificate"} <= details.keys() else None,
            components=self._components(name, row, details) if name in self._decomposing else [],
            uncovered=list(_uncoverings(details, entry.parameters, entry.grid)),
            numbers=[
                (
                    shown(key).replace("_", " "),
                    number(value.item()) if value.dtype.kind == "f" else f"{value:,}",
                )
                for key, value in details.items()
                if np.ndim(value) == 0 and key not in special
            ],
        )

    def _components(self, name: str, row: int, details: Mapping[str, Any]) -> list[ShownComponent]:
        components = components_from(details, details["components"].shape[1:])[:_COMPONENTS]
        return [
            ShownComponent(
                self._link(
                    f"component/{name}/{row}-{rank}.png",
                    partial(map_png, component.saliency, INFERNO),
                ),
                [f"weight {number(component.weight)}"]
                + ([] if component.gain is None else [f"gain {number(component.gain)}"])
                + ([] if component.share is None else [f"share {100 * component.share:.0f} %"]),
            )
            for rank, component in enumerate(components)
        ]


def _kept(details: Mapping[str, Any]) -> Kept:
    units = np.flatnonzero(details["unit_mask"])
    more = f" and {len(units) - _UNITS} more" if len(units) > _UNITS else ""
    return Kept(
        kept=int(details["kept"]),
        units=len(details["unit_mask"]),
        numbers=", ".join(map(str, units[:_UNITS].tolist())) + more,
        certified=bool(details["certificate"]),
    )


def _uncoverings(
    details: Mapping[str, Any], parameters: Mapping[str, Any], grid: tuple[int, ...]
) -> Iterator[Uncovering]:
    """The cells that were chosen in each mode of which an order is stored."""
    for mode in ("insertion", "deletion"):
        if f"{mode}_order" not in details or len(grid) != 2:
            continue
        order, reward = details[f"{mode}_order"], details[f"{mode}_reward"].astype(np.float64)
        order = order[order >= 0].astype(int)
        # The reward is log(p / (1 - p)), unless the job says that it is the confidence p itself.
        known = reward[: len(order)]
        confidence = known if parameters.get("reward") == "confidence" else 1 / (1 + np.exp(-known))
        steps = int(details[f"{mode}_steps"])
        start = steps or len(order)
        if not start:
            continue
        yield Uncovering(
            mode=mode,
            grid=(grid[0], grid[1]),
            order=",".join(map(str, order.tolist())),
            confidence=",".join(map(number, confidence.tolist())),
            count=len(order),
            found=_found(mode, steps, grid[0] * grid[1]),
            start=start,
            cover=covered(order, start, (grid[0], grid[1]), mode),
            points=_points(confidence),
            told=number(confidence[start - 1]),
        )


def _found(mode: str, steps: int, cells: int) -> str:
    if not steps:
        return "The prediction never changes."
    what = "suffice for the prediction" if mode == "insertion" else "have to go to change the prediction"
    return f"The first {steps} of {cells} cells {what}."


def covered(order: NDArray[np.int64], steps: int, grid: tuple[int, int], mode: str) -> str:
    """The ``d`` of an SVG path with a square for every cell that is absent after some steps."""
    absent = np.ones(grid[0] * grid[1], bool) if mode == "insertion" else np.zeros(grid[0] * grid[1], bool)
    absent[order[:steps]] = mode == "deletion"
    rows, columns = np.divmod(np.flatnonzero(absent), grid[1])
    return "".join(f"M{x} {y}h1v1h-1z" for y, x in zip(rows.tolist(), columns.tolist(), strict=True))


def _points(confidence: NDArray[np.float64]) -> str:
    across = np.linspace(0, WIDTH, len(confidence))
    known = np.nan_to_num(confidence)
    return " ".join(f"{x:.0f},{HEIGHT * (1 - p):.1f}" for x, p in zip(across, known, strict=True))
