"""What is found in a whole run: decided from all of its suspicions, and written as tables and arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.findings import drop_found, read_clustered, read_suspected, write_found
from storage.records import SUSPICIONS, Step
from storage.run import Run
from tasks.findings.decision import Effect, Outcome, State, decided
from tasks.findings.merge import merged
from tasks.findings.of_run import Used, source_of, used_of
from tasks.findings.seen import SIDE
from tasks.findings.stored import unpacked
from tasks.findings.words import place_of, sentence

# In the tables and in the page, what was found comes first.
ORDER = list(State)


@dataclass(frozen=True, eq=False)
class Found:
    """An outcome of the run, with what belongs to its explainer.

    Attributes
    ----------
    explainer, used
        The explainer, and its maps that count.
    class_images, reading
        How many images the network takes for the class, and in how many of them it reads the region.
    mean_map
        (h w,) the mean map of the exemplars, row by row.
    """

    explainer: str
    used: Used
    class_images: int
    reading: int
    mean_map: NDArray[np.float32]
    outcome: Outcome


def is_complete(run: Run) -> bool:
    """Whether a run looks for findings, and has looked in all classes."""
    steps = {
        Step(SUSPICIONS, part, name) for name in run.manifest.findings for part in range(run.layout.parts)
    }
    return bool(run.manifest.findings) and steps <= run.finished()


def write_findings(run: Run) -> list[dict[str, Any]]:
    """Decide about all suspicions of a run, and write its tables and arrays; return the rows of findings.

    If some classes are missing, earlier tables are removed and nothing is returned.
    """
    if not run.manifest.findings:
        return []
    if not is_complete(run):
        drop_found(run.root)
        return []
    found = found_of(run)
    arrays = {name: _arrays(run, name, own) for name, own in found.items()}
    rows = [_row(each, place) for own in found.values() for place, each in enumerate(own)]
    clusters = []
    for name in found:
        own, maps = _clusters(run, name)
        clusters += own
        arrays[name]["cluster_maps"] = maps
    rows.sort(
        key=lambda row: (
            ORDER.index(State(row["status"])),
            -(row["transplant_difference"] or 0),
            -row["strength"],
        )
    )
    write_found(run.root, rows, clusters, arrays)
    return rows


def found_of(run: Run) -> dict[str, list[Found]]:
    """Read all outcomes of a run, and decide about them.

    Returns
    -------
    dict
        By explainer, in the order of the rows of its arrays.
    """
    raw: list[Found] = []
    for name in run.manifest.findings:
        used = used_of(source_of(run, name))
        for part in range(run.layout.parts):
            raw += [
                Found(
                    name,
                    used,
                    row["class_images"],
                    row["reading"],
                    np.array(row["mean_map"], np.float32),
                    unpacked(row["outcome"]),
                )
                for row in read_suspected(run.root, name, part)
            ]
    settled = decided([each.outcome for each in raw])
    found = {}
    for name in run.manifest.findings:
        own = {id(each.outcome.suspicion): each for each in raw if each.explainer == name}
        # What two explainers find stays apart, so that each can be judged by itself.
        outcomes = merged([each for each in settled if id(each.suspicion) in own])
        found[name] = [replace(own[id(each.suspicion)], outcome=each) for each in outcomes]
    return found


def _row(found: Found, place: int) -> dict[str, Any]:
    """A row of ``findings.parquet``."""
    outcome, used = found.outcome, found.used
    suspicion = outcome.suspicion
    row = {
        "explainer": found.explainer,
        "class": suspicion.target,
        "class_name": used.names.get(suspicion.target),
        "view": suspicion.view,
        "status": outcome.state.value,
        "reason": outcome.reason,
        "strength": suspicion.strength,
        "images": found.reading,
        "share": found.reading / found.class_images,
        **_effect("removal", outcome.drop),
        **_effect("transplant", outcome.rise),
        **_effect("flips", outcome.flips),
        "p_value": _known(outcome.p_value),
        "p_holm": _known(outcome.p_holm),
        "array_row": place,
        "exemplars": [used.samples[row]["sample_id"] for row in suspicion.exemplars],
        "passes": outcome.passes,
    }
    paired = outcome.removal is None or outcome.removal.paired
    return row | {"told": sentence(row, told_place(outcome), found.class_images, paired)}


def told_place(outcome: Outcome) -> str:
    """Where a suspicion is, in words."""
    if outcome.suspicion.view == "off_object_own" and outcome.refined is None:
        return "something beside the object"
    region = outcome.suspicion.footprint if outcome.refined is None else outcome.refined
    return place_of(region.numpy())


def _effect(name: str, effect: Effect | None) -> dict[str, float | None]:
    ends = {"": "mean", "_control": "control", "_difference": "difference", "_low": "low", "_high": "high"}
    ends["_p"] = "p_value"
    return {
        f"{name}{end}": None if effect is None else _known(getattr(effect, key)) for end, key in ends.items()
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _arrays(run: Run, explainer: str, found: list[Found]) -> dict[str, NDArray[Any]]:
    """The arrays of an explainer, one row per outcome."""
    height, width = run.input_size
    regions = [each.outcome.suspicion.footprint.numpy() for each in found]
    refined = [
        np.zeros((height, width)) if each.outcome.refined is None else each.outcome.refined.numpy()
        for each in found
    ]
    return {
        "regions": np.array(regions, np.uint8).reshape(-1, height, width),
        "refined": np.array(refined, np.uint8).reshape(-1, height, width),
        "mean_maps": np.array([each.mean_map for each in found], np.float32).reshape(
            -1, *pooled_grid(run, explainer)
        ),
    }


def _clusters(run: Run, explainer: str) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """The rows of ``clusters.parquet`` of an explainer, and the mean maps."""
    names = used_of(source_of(run, explainer)).names
    rows: list[dict[str, Any]] = []
    maps: list[list[float]] = []
    for part in range(run.layout.parts):
        for row in read_clustered(run.root, explainer, part):
            mean = row.pop("mean_map")
            place = len(maps) if mean else None
            if mean:
                maps.append(mean)
            rows.append(
                row | {"explainer": explainer, "class_name": names.get(row["class"]), "array_row": place}
            )
    return rows, np.array(maps, np.float32).reshape(-1, *pooled_grid(run, explainer))


def pooled_grid(run: Run, explainer: str) -> tuple[int, int]:
    """The grid of an explainer's pooled maps."""
    height, width = run.explainers[explainer].grid
    return min(height, SIDE), min(width, SIDE)
