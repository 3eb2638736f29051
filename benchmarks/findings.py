"""Counts the hits and the false alarms of the search for findings, on networks in which something is planted.

    python benchmarks/findings.py [--kinds corner border ...] [--seeds 20] [--first 0] [--sources gradcam ...]
        [--out benchmarks/findings.csv] [--weights FOLDER]
    python benchmarks/findings.py --table     # print the table of the file as Markdown, and measure nothing

Each network of ``examples/planted.py`` is trained from scratch, 1 to 2 minutes on one core, and kept in the
folder of weights. Its class is the seed modulo 8. A seed counts if the planting worked: at least 85 % of the
clean test images are right, and planting the cue on images of other classes turns at least half of them. All
seeds are in the file, those that do not count as well.

For each network, source of maps, and with and without boxes, the file gets one row: how many findings (or
candidates, without boxes) there are in the planted class and in the others, whether the first one is of the
planted class, the effects of the best one, how much of the cue lies in its region, and how well the refined
place fits. Rows that are in the file already are left out, so that an interrupted run can be resumed.

The source ``random`` are maps of noise. They raise no suspicions, so that their regions are forced through
the interventions.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# The project comes first on the path, so that explainers.py beside this file does not hide the package.
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import numpy as np
import planted
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import floodlit
from explainers.models.classifier import Classifier
from tasks.findings.decision import Outcome, State, decided
from tasks.findings.examine import examine_class, suspicions_of
from tasks.findings.merge import merged
from tasks.findings.off_object import suspected_classes
from tasks.findings.seen import Seen, grown, pooled, share_on_objects
from tasks.findings.suspicion import EXEMPLARS, Suspicion

SIZE = (64, 64)
SOURCES: dict[str, dict[str, Any]] = {"gradcam": {}, "ddcam": {}, "rise": {"masks": 200}, "random": {}}
KEY = ("kind", "seed", "source", "boxes")
COLUMNS = (
    *KEY,
    "target",
    "accuracy",
    "turned",  # share of other classes' images that the planted cue turns
    "counted",
    "tested",
    "hits",  # findings or candidates of the planted class
    "first",  # whether the first of all is of the planted class
    "alarms",  # findings or candidates of other classes, and of all classes where nothing is planted
    "view",
    "drop",
    "rise",
    "flips",
    "coverage",
    "iou",
    "refined_iou",
    "honest_rise",  # the largest rise of a tested suspicion that is a false alarm if it becomes a finding
    "passes",
    "seconds",
)


def network_of(kind: str, seed: int, train: planted.Images, folder: Path) -> torch.nn.Module:
    """The network of a seed, trained if it is not in the folder yet."""
    file, target = folder / f"{kind}-{seed}.safetensors", seed % planted.CLASSES
    if not file.exists():
        images = planted.planted(train, kind, target, seed)
        made = planted.trained(images, kind, target, seed)
        save_file({key: value.contiguous() for key, value in made.state_dict().items()}, file)
    network = planted.Network()
    network.load_state_dict(load_file(file))
    return network.eval()


def boxes_as_pixels(images: planted.Images) -> Tensor:
    """(N, 64, 64) bool: the pixels of each box."""
    found = torch.zeros(len(images.labels), *SIZE, dtype=torch.bool)
    for pixels, (left, top, right, bottom) in zip(found, images.boxes.astype(int), strict=True):
        pixels[top:bottom, left:right] = True
    return found


def searched(network: torch.nn.Module, images: planted.Images, source: str, boxes: bool) -> list[Outcome]:
    """What the search says about a network, findings first."""
    inputs = planted.inputs_of(images).float() / 255
    model = Classifier(network, layer="features", input_size=SIZE)
    found = floodlit.explain(model, inputs, source, batch=100, **SOURCES[source])
    maps, objects = pooled(found.maps), boxes_as_pixels(images)
    seen = Seen(
        maps,
        found.targets.numpy(),
        images.labels,
        share_on_objects(maps, grown(objects)).numpy() if boxes else None,
        lambda rows: inputs[rows],
        (lambda rows: objects[rows]) if boxes else None,
    )
    classes = np.unique(seen.classes)
    off = suspected_classes(seen, classes) if boxes else {}
    outcomes = []
    for each in classes.tolist():
        if source == "random":
            suspicions = forced(seen, each)
        else:
            suspicions = suspicions_of(seen, each, SIZE, off.get(each))
        outcomes += examine_class(model, seen, suspicions)
    return merged(decided(outcomes))


def forced(seen: Seen, target: int) -> list[Suspicion]:
    """Two suspicions from maps that raise none: the largest tenth of their mean, and of each of them."""
    rows = seen.rows_of(target)
    exemplars = rows[:EXEMPLARS]
    regions = {"mean": largest_tenth(seen.maps[rows].mean(0, keepdim=True))[0]}
    regions["own"] = largest_tenth(seen.maps[exemplars])
    return [
        Suspicion(f"forced {name}", target, exemplars, region, len(rows), 0.0)
        for name, region in regions.items()
    ]


def largest_tenth(maps: Tensor) -> Tensor:
    """(n, 64, 64) bool: the tenth of the cells of maps (n, h, w) that are largest."""
    cells = maps >= maps.flatten(1).quantile(0.9, 1)[:, None, None]
    return torch.nn.functional.interpolate(cells[:, None].float(), SIZE)[:, 0] > 0


def measured(
    kind: str, seed: int, network: torch.nn.Module, test: planted.Images, source: str, boxes: bool
) -> dict[str, Any]:
    """The row of one network, source and state of knowledge."""
    target, start = seed % planted.CLASSES, time.perf_counter()
    accuracy, turned = planted.worked(network, test, kind, target, seed)
    images = planted.planted(test, kind, target, seed)
    outcomes = searched(network, images, source, boxes)
    shown = [each for each in outcomes if each.state in {State.FINDING, State.CANDIDATE}]
    guilty = [each for each in shown if kind in planted.SHARES and each.suspicion.target == target]
    honest = [
        each.rise.difference
        for each in outcomes
        if each.rise is not None and not (kind in planted.SHARES and each.suspicion.target == target)
    ]
    row: dict[str, Any] = {"kind": kind, "seed": seed, "source": source, "boxes": boxes, "target": target}
    row |= {"accuracy": accuracy, "turned": turned}
    row["counted"] = accuracy >= planted.LEAST_ACCURACY and turned >= planted.LEAST_FLIPS
    row |= {"tested": sum(each.drop is not None for each in outcomes), "hits": len(guilty)}
    row |= {"first": bool(guilty) and shown[0] is guilty[0], "alarms": len(shown) - len(guilty)}
    if guilty:
        row |= effects(guilty[0], kind, images.cues)
    row["honest_rise"] = max(honest, default=np.nan)
    row |= {"passes": sum(each.passes for each in outcomes), "seconds": time.perf_counter() - start}
    return row


def effects(best: Outcome, kind: str, cues: planted.Bools) -> dict[str, Any]:
    """What was measured of the best finding of the planted class, and how well its region fits the cue."""
    assert best.drop is not None
    assert best.rise is not None
    assert best.flips is not None
    row: dict[str, Any] = {"view": best.suspicion.view, "drop": best.drop.difference}
    row |= {"rise": best.rise.difference, "flips": best.flips.mean}
    if kind in {"corner", "border"}:
        truth, region = torch.from_numpy(cues.any(0)), best.suspicion.footprint
        row |= {"coverage": float((region & truth).sum() / truth.sum()), "iou": overlap(region, truth)}
        if best.refined is not None:
            row["refined_iou"] = overlap(best.refined, truth)
    return row


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


def run(asked: argparse.Namespace) -> None:
    """Measure all rows that are not in the file."""
    torch.set_num_threads(1)
    known = {tuple(row[key] for key in KEY) for row in read(asked.out)}
    train = planted.clean("train", planted.TRAIN_IMAGES)
    test = planted.clean("test", planted.TEST_IMAGES)
    asked.weights.mkdir(parents=True, exist_ok=True)
    with asked.out.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        if stream.tell() == 0:
            writer.writeheader()
        for kind, seed, source, boxes in wanted(asked):
            if (kind, str(seed), source, str(boxes)) in known:
                continue
            network = network_of(kind, seed, train, asked.weights)
            row = measured(kind, seed, network, test, source, boxes)
            rounded = {key: f"{each:.4g}" if isinstance(each, float) else each for key, each in row.items()}
            writer.writerow(rounded)
            stream.flush()
            print(" ".join(f"{key}={each}" for key, each in rounded.items()), flush=True)


def wanted(asked: argparse.Namespace) -> Iterator[tuple[str, int, str, bool]]:
    """The rows that are asked for, all kinds of a seed before the next seed."""
    for seed in range(asked.first, asked.first + asked.seeds):
        for kind in asked.kinds:
            for source in asked.sources:
                for boxes in (True, False):
                    yield kind, seed, source, boxes


def read(file: Path) -> list[dict[str, str]]:
    """The rows of the file, as texts."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def table(rows: Sequence[dict[str, str]]) -> str:
    """The rows as Markdown, over the seeds that count."""
    lines = [
        "| planted | maps | boxes | seeds that count | found first | false alarms | rise | flips | coverage "
        "| IoU refined |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in planted.KINDS:
        for source in SOURCES:
            for boxes in ("True", "False"):
                every = [r for r in rows if (r["kind"], r["source"], r["boxes"]) == (kind, source, boxes)]
                if every:
                    lines.append(line(kind, source, boxes, every))
    return "\n".join(lines)


def line(kind: str, source: str, boxes: str, every: Sequence[dict[str, str]]) -> str:
    """One line of the table."""
    rows = [row for row in every if row["counted"] == "True"]
    first = str(sum(row["first"] == "True" for row in rows)) if kind in planted.SHARES else ""
    alarms = sum(int(row["alarms"]) for row in rows)
    numbers = [middle(rows, column) for column in ("rise", "flips", "coverage", "refined_iou")]
    cells = [kind, source, "yes" if boxes == "True" else "no", f"{len(rows)} of {len(every)}"]
    return f"| {' | '.join([*cells, first, str(alarms), *numbers])} |"


def middle(rows: Sequence[dict[str, str]], column: str) -> str:
    """The median of a column over the rows that have a value, with the smallest and the largest."""
    values = [float(row[column]) for row in rows if row[column]]
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def main(arguments: list[str] | None = None) -> None:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=planted.KINDS, default=list(planted.KINDS))
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=["gradcam"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "findings.csv")
    parser.add_argument("--weights", type=Path, default=ROOT / "runs" / "planted", help="folder of networks")
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    asked = parser.parse_args(arguments)
    if asked.table:
        print(table(read(asked.out)))
    else:
        run(asked)


if __name__ == "__main__":
    main()
