"""The section of the report on findings: each in words and in pictures, and what was not confirmed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.layout import FOUND
from storage.maps import read_rows
from storage.parquet import read_table
from storage.places import is_there
from storage.run import Run
from tasks.findings.of_run import Used, objects_of
from tasks.findings.regions import without
from tasks.findings.results import Found, found_of, is_complete, told_place
from tasks.findings.seen import Rows, grown
from tasks.findings.told import SHOWN, WITHOUT_OBJECTS, rows_of
from tasks.findings.trials import composed
from tasks.findings.words import VIEWS, class_told
from tasks.page.picture_data import INFERNO, inline, map_png, webp
from tasks.pictures.drawing import coloured, shown_bands

_MOST = 12  # findings with pictures
_LISTED = 60  # other suspicions
_CLASSES = 10  # whose strategies are shown
_EXAMPLES = 6  # exemplars of a finding
_PAIRS = 4  # images before and after an intervention
_SIDE = 160  # pixels of the longer side of a picture, at most


@dataclass(frozen=True)
class Pair:
    """An image before and after an intervention, as addresses of pictures, and what happened."""

    before: str
    after: str
    told: str


@dataclass(frozen=True)
class ShownFinding:
    """A finding or candidate with its pictures.

    Attributes
    ----------
    row
        Its row of ``findings.parquet``.
    mean_map, region
        The mean map of the exemplars, and the region, or the refined place in it; addresses of pictures.
    region_told
        Which of the two it is.
    exemplars
        Pictures of images that stand for it.
    removals, transplants
        Examples of the two interventions.
    """

    row: dict[str, Any]
    mean_map: str
    region: str
    region_told: str
    exemplars: list[str]
    removals: list[Pair]
    transplants: list[Pair]


@dataclass(frozen=True)
class Cluster:
    """A cluster of a class: its row of ``clusters.parquet``, and the address of its mean map."""

    row: dict[str, Any]
    mean_map: str


@dataclass(frozen=True)
class View:
    """Clusters of one kind, of one explainer: by the class in words, and how many classes have some."""

    name: str
    explainer: str
    by_class: dict[str, list[Cluster]]
    classes: int


@dataclass(frozen=True)
class Findings:
    """What the template ``findings.html`` shows.

    Attributes
    ----------
    explainers
        Those whose maps were looked at.
    shown, more
        Findings and candidates, and how many there are besides.
    others, unlisted
        Rows of other suspicions, and how many there are besides.
    counts
        How many suspicions there are of each status.
    views
        What else there is to look at, for the classes with most images.
    notes
        What cannot be found, and which images do not count.
    ratio
        Width by height of an input, for the style sheet.
    """

    explainers: list[str]
    shown: list[ShownFinding]
    more: int
    others: list[dict[str, Any]]
    unlisted: int
    counts: dict[str, int]
    views: list[View]
    notes: list[str]
    ratio: str


def findings_of(run: Run) -> Findings | None:
    """Read the findings of a run; None if it did not look for any, or has not decided yet, or anew."""
    if not is_complete(run) or not is_there(run.root / FOUND[0]):
        return None
    rows = rows_of(run)
    found = found_of(run)
    main = [row for row in rows if row["status"] in SHOWN]
    others = [
        row | {"view": VIEWS.get(row["view"], row["view"])} for row in rows if row["status"] not in SHOWN
    ]
    used = {name: own[0].used for name, own in found.items() if own}
    return Findings(
        explainers=list(run.manifest.findings),
        shown=[_shown(run, row, found[row["explainer"]][row["array_row"]]) for row in main[:_MOST]],
        more=len(main[_MOST:]),
        others=[
            row | {"place": told_place(found[row["explainer"]][row["array_row"]].outcome)}
            for row in others[:_LISTED]
        ],
        unlisted=len(others[_LISTED:]),
        counts=dict(Counter(row["status"] for row in rows)),
        views=_views(run),
        notes=_notes(used),
        ratio=f"{run.input_size[1]} / {run.input_size[0]}",
    )


def _notes(used: dict[str, Used]) -> list[str]:
    notes = [
        f"{explainer}: {count:,} images do not count: {reason}"
        for explainer, each in used.items()
        for reason, count in each.left_out.items()
    ]
    if used and not all(each.objects for each in used.values()):
        notes.insert(0, WITHOUT_OBJECTS[0].upper() + WITHOUT_OBJECTS[1:])
    return notes


def _shown(run: Run, row: dict[str, Any], found: Found) -> ShownFinding:
    suspicion = found.outcome.suspicion
    group = run.root / "findings.zarr" / found.explainer
    mean = read_rows(group / "mean_maps", [row["array_row"]])[0]
    refined = found.outcome.refined
    region = (suspicion.footprint if refined is None else refined).float()
    return ShownFinding(
        row=row,
        mean_map=_map(mean),
        region=_map(region.numpy()),
        region_told="tested region" if refined is None else "refined place in the tested region",
        exemplars=[
            _picture(run, each, _SIDE) for each in _images(run, found.used, suspicion.exemplars[:_EXAMPLES])
        ],
        removals=_removals(run, found),
        transplants=_transplants(run, found),
    )


def _transplants(run: Run, found: Found) -> list[Pair]:
    """Images of other classes before and after they get the region's content of an exemplar."""
    pasted, suspicion, used = found.outcome.transplant, found.outcome.suspicion, found.used
    if pasted is None:
        return []
    # Those that changed most are the easiest to understand; the numbers beside them are of all.
    most = np.argsort(-pasted.rises, kind="stable")[:_PAIRS]
    rows, donors = pasted.rows[most], pasted.donors[most, 0]
    places = [int(np.flatnonzero(suspicion.exemplars == donor)[0]) for donor in donors]
    regions = _beside(run, used, suspicion.regions[places], donors, rows)
    under, over = _images(run, used, rows), _images(run, used, donors)
    return _pairs(
        run,
        under,
        over,
        regions,
        [
            f"{used.samples[row]['prediction_name'] or used.classes[row]}: {rise:+.1f} nats"
            for row, rise in zip(rows, pasted.rises[most], strict=True)
        ],
    )


def _removals(run: Run, found: Found) -> list[Pair]:
    """Exemplars before and after the region shows content of an image of another class."""
    removal, pasted, suspicion = found.outcome.removal, found.outcome.transplant, found.outcome.suspicion
    if removal is None or pasted is None:
        return []
    most = np.argsort(-removal.drops, kind="stable")[: min(_PAIRS, len(pasted.rows))]
    rows, fills = removal.rows[most], pasted.rows[: len(most)]
    places = [int(np.flatnonzero(suspicion.exemplars == row)[0]) for row in rows]
    regions = _beside(run, found.used, suspicion.regions[places], rows, rows)
    under, over = _images(run, found.used, rows), _images(run, found.used, fills)
    told = [f"{-drop:+.1f} nats" for drop in removal.drops[most]]
    return _pairs(run, under, over, regions, told)


def _beside(run: Run, used: Used, regions: Tensor, one: Rows, other: Rows) -> Tensor:
    """Regions (n, H, W) without the objects of two images each."""
    if not used.objects:
        return regions
    for rows in (one, other):
        regions = without(regions, grown(objects_of(run, used, rows)))
    return regions


def _pairs(run: Run, under: Tensor, over: Tensor, regions: Tensor, told: list[str]) -> list[Pair]:
    after = composed(under, over, regions)
    return [
        Pair(_picture(run, one, _SIDE), _picture(run, other, _SIDE), each)
        for one, other, each in zip(under, after, told, strict=True)
    ]


def _images(run: Run, used: Used, rows: Rows) -> Tensor:
    """(n, C, H, W) the inputs as they are stored."""
    return torch.from_numpy(read_rows(run.inputs, used.images[rows].tolist()))


def _picture(run: Run, values: Tensor, most: int) -> str:
    return inline("image.webp", lambda: webp(coloured(values.numpy(), shown_bands(run)), most))


def _map(values: NDArray[Any]) -> str:
    """A map from its own lowest to its own highest value."""
    low, high = float(values.min()), float(values.max())
    levels = (values - low) / (high - low if high > low else 1)
    return inline("map.png", lambda: map_png(levels, INFERNO))


def _views(run: Run) -> list[View]:
    """The strategies that the first explainer gives, and the units of the first one that keeps some."""
    rows = read_table(run.root / FOUND[1]).to_pylist()
    found = []
    for name in ("strategies", "units"):
        own = [row for row in rows if row["view"] == name]
        if own:
            first = own[0]["explainer"]
            found.append(_view(run, name, first, [row for row in own if row["explainer"] == first]))
    return found


def _view(run: Run, name: str, explainer: str, rows: list[dict[str, Any]]) -> View:
    sizes: Counter[int] = Counter()
    for row in rows:
        sizes[row["class"]] += row["images"]
    chosen = sorted(number for number, _ in sizes.most_common(_CLASSES))
    own = [row for number in chosen for row in rows if row["class"] == number]
    maps = read_rows(run.root / "findings.zarr" / explainer / "cluster_maps", [r["array_row"] for r in own])
    by_class: dict[str, list[Cluster]] = {}
    for row, mean in zip(own, maps, strict=True):
        by_class.setdefault(class_told(row["class"], row["class_name"]), []).append(Cluster(row, _map(mean)))
    return View(name, explainer, by_class, len(sizes))
