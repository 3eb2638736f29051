"""Stage 1: read every input once.

Images are decoded as the model's preprocessing says, and their boxes go through the same geometry. Texts are
tokenised. Numbers are stored as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from explainers.models.modality import MODALITIES
from explainers.models.text import TextClassifier
from storage.datasets.dataset import Dataset, Sample
from storage.datasets.geometry import as_input, has_area, move_boxes, size_of
from storage.datasets.masks import BACKGROUND, OBJECT, notes_on, prepare_mask, united
from storage.datasets.notes import LABELS_CUT, SHARED_BOXES, SHARED_MASK
from storage.maps import shard_file, write_shard
from storage.records import Step
from storage.run import Run
from storage.samples import write_sample_inputs
from tasks.perform import Outcome, perform
from tasks.run_parts import classifier_of, dataset_of

Row = dict[str, Any]
_BLOCK = 16  # inputs that a thread reads in one go


@task(name="inputs", cache_policy=NO_CACHE)
def inputs(root: str, shard: int) -> dict[str, Any]:
    """Write one shard of ``inputs.zarr`` and of the samples' geometry.

    An input that cannot be read becomes a row with status ``failed`` and its error, and the run continues.

    Parameters
    ----------
    root
        The run folder.
    shard
        Index of the shard, from 0.

    Returns
    -------
    dict
        The path of the done-record, the rows and the seconds; see :func:`tasks.perform.perform`.
    """
    return perform(root, Step("inputs", shard), lambda run: _read(run, shard), is_done=lambda _: True)


def _read(run: Run, shard: int) -> Outcome:
    dataset = dataset_of(run)
    start, stop = run.bounds(shard)
    kind = MODALITIES[run.modality]
    stored = np.full((stop - start, *run.manifest.input_shape), kind.nothing, run.manifest.input_dtype)
    several = (run.manifest.mask_labels,) if run.manifest.mask_labels else ()
    shape = (stop - start, *several, *run.input_size)
    masks = np.zeros(shape, np.uint8) if run.manifest.masks else None

    def one(index: int) -> Row:  # an unreadable input keeps the placeholder that ``stored`` begins with
        row = _row(run, dataset, index, stored[index - start])
        if masks is not None:
            _put_mask(run, dataset, index, masks[index - start], row)
        return row

    # Decoding and resizing release Python's lock, so that threads use all cores of the worker.
    blocks = [range(first, min(first + _BLOCK, stop)) for first in range(start, stop, _BLOCK)]
    with ThreadPoolExecutor(torch.get_num_threads() if dataset.parallel else 1) as readers:
        rows = [row for block in readers.map(lambda block: [one(i) for i in block], blocks) for row in block]
    write_shard(run.inputs, start, stored)
    files = [shard_file(run.inputs, shard)]
    if masks is not None:
        write_shard(run.masks, start, masks)
        files.append(shard_file(run.masks, shard))
    files.append(write_sample_inputs(run.root, shard, rows))
    return Outcome(len(rows), [row["status"] for row in rows], files)


def _row(run: Run, dataset: Dataset, index: int, out: np.ndarray) -> Row:
    """Read one input into ``out`` and return its sample row."""
    sample = dataset.samples[index]
    row = _blank(run, dataset, sample)
    more = len(row["labels"]) - run.targets_per_image
    if run.explains_labels and more > 0:
        row["notes"].append(f"{LABELS_CUT}: {more}")
    try:
        item = dataset.load(index, row["notes"])
        if dataset.modality == "image":
            found = dataset.objects(index, size_of(item), row["notes"])  # type: ignore[arg-type]
            labels = tuple(label for _, label in found if label is not None)
            if sample.boxes and not sample.box_labels and len(row["labels"]) > 1:
                row["notes"].append(SHARED_BOXES)
            sample = replace(sample, boxes=tuple(box for box, _ in found), box_labels=labels)
        _PUT[run.modality](run, item, sample, out, row)
        row["status"] = "ok"
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def _put_mask(run: Run, dataset: Dataset, index: int, out: np.ndarray, row: Row) -> None:
    """Write the mask of an image into ``out``, if it has one; a mask that cannot be used fails the row."""
    if row["status"] != "ok":
        return
    try:
        mask = dataset.mask(index, (row["width"], row["height"]), row["notes"])
        if mask is None:
            return
        prepared = prepare_mask(mask, run.geometry)
        if dataset.masks_by_label:
            _put_by_label(run, dataset.samples[index].labels, prepared, out, row["labels"])
        else:
            out[:] = prepared
            row["notes"] += [SHARED_MASK] * (len(row["labels"]) > 1)
        row["notes"] += notes_on(united(np.asarray(mask)), united(prepared))
    except Exception as error:
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def _put_by_label(
    run: Run, labels: Sequence[int], masks: np.ndarray, out: np.ndarray, classes: Sequence[int]
) -> None:
    """Write the masks of an image's labels into ``out``, at the places of their classes in ``classes``.

    Of two labels that are one class of the model the objects count, and then the ignored pixels.
    """
    for label, mask in zip(labels, masks, strict=True):
        known = run.class_of(label)
        if known is not None and (place := classes.index(known)) < len(out):
            counts = (mask == OBJECT) | (out[place] == BACKGROUND)
            out[place] = np.where(counts, mask, out[place])


def _put_image(run: Run, image: Any, sample: Sample, out: np.ndarray, row: Row) -> None:
    row["width"], row["height"] = size_of(image)
    out[:], boxes = as_input(image, sample.boxes, run.geometry, run.input_size, row["notes"])
    row["boxes"] = [list(box) for box in boxes]
    if sample.box_labels:
        moved = move_boxes(sample.boxes, size_of(image), **run.geometry)
        labels = [label for label, box in zip(sample.box_labels, moved, strict=True) if has_area(box)]
        row["box_labels"] = [run.class_of(label) for label in labels]


def _put_text(run: Run, text: str, sample: Sample, out: np.ndarray, row: Row) -> None:  # noqa: ARG001
    row["text"] = text
    classifier = classifier_of(run)
    assert isinstance(classifier, TextClassifier)
    out[:], row["tokens"], row["width"] = classifier.encode(text)


def _put_numbers(run: Run, numbers: np.ndarray, sample: Sample, out: np.ndarray, row: Row) -> None:  # noqa: ARG001
    if list(numbers.shape) != run.geometry["shape"]:
        raise ValueError(f"has the shape {numbers.shape}, but the run's rows have {run.geometry['shape']}")
    out[:] = numbers


_PUT: dict[str, Callable[[Run, Any, Sample, np.ndarray, Row], None]] = {
    "image": _put_image,
    "text": _put_text,
    "tensor": _put_numbers,
}


def _blank(run: Run, dataset: Dataset, sample: Sample) -> Row:
    """The row of an input that has not been read: its status is ``failed`` until it has."""
    return {
        "sample_id": sample.sample_id,
        "uri": sample.uri,
        "label": run.class_of(sample.label),
        "labels": _classes(run, sample),
        "label_name": _label_names(dataset, sample),
        "width": None,
        "height": None,
        "boxes": [],
        "box_labels": None,
        "text": None,
        "tokens": None,
        "notes": [],
        "status": "failed",
        "error": None,
    }


def _classes(run: Run, sample: Sample) -> list[int]:
    """The model's classes among a sample's labels, each once: several names may stand for one class."""
    found = dict.fromkeys(run.class_of(label) for label in sample.every_label)
    return [known for known in found if known is not None]


def _label_names(dataset: Dataset, sample: Sample) -> str | None:
    """The dataset's own names of a sample's labels; None if it has none."""
    names = [_label_name(dataset, label) for label in sample.every_label]
    return "; ".join(name for name in names if name is not None) or None


def _label_name(dataset: Dataset, label: int) -> str | None:
    """The dataset's own name of a label: where its classes have no names, the number as it is written."""
    if not dataset.classes:
        return str(label)
    # Sets without labels say so by -1, which is no class.
    return dataset.classes[label] if 0 <= label < len(dataset.classes) else None
