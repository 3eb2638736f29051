"""Stage 1: decode every image once, as the model's preprocessing says, boxes through the same geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets import Dataset, Sample
from storage.images import prepare_image
from storage.maps import shard_file, write_shard
from storage.records import Step
from storage.run import Run
from storage.scores import write_sample_inputs
from tasks.workplace import Outcome, dataset_of, perform

Row = dict[str, Any]


@task(name="inputs", cache_policy=NO_CACHE)
def inputs(root: str, shard: int) -> dict[str, Any]:
    """Write one shard of ``inputs.zarr`` and of the samples' geometry.

    An image that cannot be decoded is a row with status ``failed`` and its error; the run goes on.
    """
    return perform(root, Step("inputs", shard), lambda run: _decode(run, shard), is_done=lambda _: True)


def _decode(run: Run, shard: int) -> Outcome:
    dataset = dataset_of(run)
    start, stop = run.bounds(shard)
    pixels = np.zeros((stop - start, 3, *run.input_size), np.uint8)
    rows = [_row(run, dataset, index, pixels[index - start]) for index in range(start, stop)]
    write_shard(run.inputs, start, pixels)
    part = write_sample_inputs(run.root, shard, rows)
    return Outcome(len(rows), [row["status"] for row in rows], [shard_file(run.inputs, shard), part])


def _row(run: Run, dataset: Dataset, index: int, out: np.ndarray) -> Row:
    sample = dataset.samples[index]
    row = _blank(sample)
    try:
        image = dataset.image(index)
        row |= {"width": image.width, "height": image.height}
        out[:], boxes = _prepared(run, image, sample)
        row |= {"boxes": boxes, "status": "ok"}
    except Exception as error:  # whatever a decoder throws at a damaged file is that row's error
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def _prepared(run: Run, image: Image.Image, sample: Sample) -> tuple[np.ndarray, list[list[float]]]:
    pixels, boxes = prepare_image(image, sample.boxes, **run.geometry)
    if pixels.shape[1:] != run.input_size:
        has, wants = "x".join(map(str, pixels.shape[1:])), "x".join(map(str, run.input_size))
        raise ValueError(f"is {has} where the run's inputs are {wants}; set model.resize and model.crop")
    return pixels, [list(box) for box in boxes]


def _blank(sample: Sample) -> Row:
    return {
        "sample_id": sample.sample_id,
        "uri": sample.uri,
        "label": sample.label,
        "width": None,
        "height": None,
        "boxes": [],
        "status": "failed",
        "error": None,
    }
