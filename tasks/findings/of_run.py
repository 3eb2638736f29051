"""The maps of a run as the search for findings reads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.numerics.batching import chunks
from explainers.statuses import STATUSES, Status
from storage.datasets.masks import OBJECT
from storage.maps import read, read_rows
from storage.records import DoneRecord, Step, read_record
from storage.run import Run
from storage.samples import each_sample_of_shards
from tasks.findings.off_object import suspected_classes
from tasks.findings.seen import Rows, Seen, grown, pooled, share_on_objects
from tasks.objects import boxes_of, masks_of

OBJECTS_KNOWN = 0.5  # share of the images from which on those without an object are left out
UNITS = "unit_mask"  # the detail of explainers that keep a set of units per map
_AT_A_TIME = 1 << 24  # numbers of maps or of pixels that are in memory at a time, at least one row
_USABLE = [STATUSES.index(status) for status in (Status.OK, Status.ALL_ZERO, Status.CONSTANT)]


@dataclass(frozen=True, eq=False)
class Used:
    """The maps of an explainer that count: N maps, each of the class that the network predicts.

    Attributes
    ----------
    images, maps
        (N,) the rows of the images in the run, ascending, and those of their maps.
    classes, labels
        (N,) the predicted class, and the label; -1 where there is none.
    confidence
        (N,) the probability of the predicted class.
    samples
        The N samples.
    objects
        Whether all of these images have boxes or masks. It is False if fewer than half of the run's have
        some; otherwise, images without any are left out.
    left_out
        How many images of the run do not count, by the reason.
    """

    images: Rows
    maps: Rows
    classes: Rows
    labels: Rows
    confidence: NDArray[np.float64]
    samples: list[dict[str, Any]]
    objects: bool
    left_out: dict[str, int]

    @property
    def names(self) -> dict[int, str]:
        """The names of the predicted classes that have one."""
        pairs = zip(self.classes.tolist(), self.samples, strict=True)
        return {number: each["prediction_name"] for number, each in pairs if each["prediction_name"]}


@dataclass(frozen=True)
class Source:
    """The maps of an explainer, as what is read of them is kept in a worker process.

    Attributes
    ----------
    root, explainer
        The run folder, and the explainer, as the run calls it.
    signed
        The checksums of the files that are read, so that nothing is kept of a run that was made anew.
    """

    root: Path
    explainer: str
    signed: tuple[str, ...]


def source_of(run: Run, explainer: str) -> Source:
    """Read the done-records of an explainer's maps; its maps and all predictions must be there."""
    return Source(run.root, explainer, tuple(_files(run, step) for step in _steps(run, explainer)))


def seen_of(source: Source, classifier: BlackBox) -> Seen:
    """Read the maps that count, once per worker process."""
    run, used, (maps, shares) = Run.open(source.root), used_of(source), _pooled(source)

    def images(rows: Rows) -> Tensor:
        stored = torch.from_numpy(read_rows(run.inputs, used.images[rows].tolist()))
        return classifier.inputs_of(stored.to(classifier.device))

    objects = (lambda rows: objects_of(run, used, rows)) if used.objects else None
    return Seen(maps, used.classes, used.labels, shares, images, objects, run.seed)


def _steps(run: Run, explainer: str) -> Iterable[Step]:
    """The steps that made what is read, shard by shard."""
    for shard in range(run.shards):
        yield from (Step("inputs", shard), Step("activations", shard), Step("saliency", shard, explainer))


def _files(run: Run, step: Step) -> str:
    """The checksums of the files of a step."""
    record: DoneRecord | None = read_record(run.root, step)
    # A step that failed and is tolerated has none; its maps do not count.
    return "" if record is None else " ".join(file.sha256 for file in record.files)


@lru_cache(maxsize=2)
def used_of(source: Source) -> Used:
    """Find out which maps count."""
    run = Run.open(source.root)
    statuses = [
        read(run.saliency(source.explainer) / "status", *run.rows_of(shard))
        if source.signed[3 * shard + 2]
        else np.full(run.rows_of(shard)[1] - run.rows_of(shard)[0], STATUSES.index(Status.FAILED))
        for shard in range(run.shards)
    ]
    usable = np.isin(np.concatenate(statuses), _USABLE)
    kept: list[tuple[int, int, dict[str, Any]]] = []
    left_out = {"no usable map of the predicted class": 0}
    for image, sample in enumerate(each_sample_of_shards(run.root, run.shards)):
        targets = sample["targets"] or []
        place = targets.index(sample["prediction"]) if sample["prediction"] in targets else -1
        row = image * run.targets_per_image + place
        if place >= 0 and usable[row]:
            kept.append((image, row, sample))
        else:
            left_out["no usable map of the predicted class"] += 1
    has = _have_objects(run, kept)
    objects = bool(kept) and has.mean() >= OBJECTS_KNOWN
    if objects:
        left_out["no box or mask of the predicted class"] = int((~has).sum())
        kept = [each for each, there in zip(kept, has, strict=True) if there]
    samples = [sample for _, _, sample in kept]
    return Used(
        images=np.array([image for image, _, _ in kept], np.int64),
        maps=np.array([row for _, row, _ in kept], np.int64),
        classes=np.array([sample["prediction"] for sample in samples], np.int64),
        labels=np.array([-1 if s["label"] is None else s["label"] for s in samples], np.int64),
        confidence=np.array([sample["confidence"] for sample in samples], np.float64),
        samples=samples,
        objects=objects,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _have_objects(run: Run, kept: list[tuple[int, int, dict[str, Any]]]) -> NDArray[np.bool_]:
    """Whether each image has a box, or a mask that is not empty, of its predicted class."""
    boxes = np.array([bool(boxes_of(sample, sample["prediction"])) for _, _, sample in kept], bool)
    if not run.manifest.masks or not len(kept):
        return boxes
    there = [
        _mask_pixels(run, [kept[i] for i in range(part.start, part.stop)]).flatten(1).any(1)
        for part in chunks(len(kept), _per_step(run))
    ]
    return boxes | torch.cat(there).numpy()


def _mask_pixels(run: Run, kept: list[tuple[int, int, dict[str, Any]]]) -> Tensor:
    stored = torch.from_numpy(read_rows(run.masks, [image for image, _, _ in kept]))
    samples = [sample for _, _, sample in kept]
    return masks_of(stored, samples, [sample["prediction"] for sample in samples]) == OBJECT


def objects_of(run: Run, used: Used, rows: Rows) -> Tensor:
    """(n, H, W) bool: the pixels of each image's mask, or of its boxes where it has none."""
    height, width = run.input_size
    found = torch.zeros(len(rows), height, width, dtype=torch.bool)
    if run.manifest.masks:
        found = _mask_pixels(run, [(int(used.images[row]), 0, used.samples[row]) for row in rows])
    without = ~found.flatten(1).any(1)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    for place in torch.nonzero(without)[:, 0].tolist():
        sample = used.samples[rows[place]]
        for left, top, right, below in boxes_of(sample, sample["prediction"]):
            found[place] |= (x > left) & (x < right) & (y > top) & (y < below)
    return found


@lru_cache(maxsize=1)
def _pooled(source: Source) -> tuple[Tensor, NDArray[np.float64] | None]:
    """The pooled maps that count (N, h, w), and their shares on the object (N,)."""
    run, used = Run.open(source.root), used_of(source)
    grid = run.explainers[source.explainer].grid
    maps, shares = [], []
    for part in chunks(len(used.maps), max(1, _AT_A_TIME // max(1, int(np.prod(grid))))):
        raw = read_rows(run.saliency(source.explainer) / "maps", used.maps[part].tolist())
        maps.append(pooled(torch.from_numpy(raw).float()))
    whole = torch.cat(maps) if maps else torch.zeros(0, *pooled(torch.zeros(1, *grid)).shape[1:])
    if not used.objects:
        return whole, None
    for part in chunks(len(used.maps), _per_step(run)):
        rows = np.arange(part.start, part.stop)
        shares.append(share_on_objects(whole[part], grown(objects_of(run, used, rows))))
    return whole, torch.cat(shares).double().numpy()


@lru_cache(maxsize=1)
def units_of(source: Source) -> NDArray[np.bool_] | None:
    """Which units each map that counts keeps, (N, U); None if the explainer keeps no units."""
    run = Run.open(source.root)
    if UNITS not in run.explainers[source.explainer].details:
        return None
    rows: list[int] = used_of(source).maps.tolist()
    return read_rows(run.saliency(source.explainer) / "details" / UNITS, rows).astype(bool)


@lru_cache(maxsize=1)
def off_object_of(source: Source) -> dict[int, tuple[Rows, float]]:
    """The classes that look off their object too often, computed once per worker process.

    They are what :func:`tasks.findings.off_object.suspected_classes` returns; none without boxes and masks.
    """
    used, (maps, shares) = used_of(source), _pooled(source)
    if shares is None:
        return {}
    seen = Seen(maps, used.classes, used.labels, shares, images=lambda rows: maps[rows], objects=None)
    return suspected_classes(seen, np.unique(used.classes))


def _per_step(run: Run) -> int:
    return max(1, _AT_A_TIME // int(np.prod(run.input_size)))
