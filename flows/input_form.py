"""The form of a model's inputs: how the items of a dataset become inputs, their size and their type."""

from __future__ import annotations

from typing import Any

import numpy as np

from explainers.models.loading import ModelSpec, preprocessing
from explainers.models.modality import MODALITIES
from flows.job import JobError
from storage.datasets.dataset import Dataset
from storage.datasets.depth import own_depth
from storage.datasets.geometry import prepare_image
from storage.datasets.reading import RGB, Bands, Stored
from storage.datasets.spec import DatasetSpec
from storage.errors import one_line


def bands_of(dataset: DatasetSpec, model: ModelSpec) -> Bands:
    """Return what the values of a dataset's images become for a model."""
    if dataset.modality != "image":
        return RGB
    depth = getattr(dataset, "depth", None)  # which not every kind has
    return Bands.of(preprocessing(model).channels, depth)


def form_of(
    model: ModelSpec, dataset: Dataset, bands: Bands
) -> tuple[dict[str, Any], tuple[int, ...] | None, str]:
    """Return how items become inputs, as the manifest keeps it, the inputs' size, and their NumPy type.

    The size is None if the model determines it.
    """
    stored = MODALITIES[dataset.modality].stored
    if dataset.modality == "text":
        _first_readable(dataset)
        return {}, None, stored
    if dataset.modality == "tensor":
        shape = _first_readable(dataset).shape
        return {"shape": list(shape)}, shape, stored
    return geometry_of(model, dataset, bands)


def geometry_of(
    model: ModelSpec, dataset: Dataset, bands: Bands
) -> tuple[dict[str, Any], tuple[int, int], Stored]:
    """Return how images become inputs, the inputs' (H, W) in pixels, and their NumPy type.

    The size is that of the crop. Without a crop it is the size of the first readable image, whose type is
    taken where ``bands`` states none.
    """
    how = preprocessing(model)
    if how.size is not None and bands.stored is not None:
        return how.geometry, how.size, bands.stored
    first = _first_readable(dataset)
    _, height, width = prepare_image(first, [], **how.geometry)[0].shape
    return how.geometry, how.size or (height, width), bands.stored or own_depth(np.asarray(first).dtype)


def _first_readable(dataset: Dataset) -> Any:
    """Return the first item that can be read; raise JobError if there is none."""
    why = ""
    for index in range(len(dataset.samples)):
        try:
            return dataset.load(index)
        except Exception as error:  # later a damaged file becomes a row with its error
            why = why or f"{dataset.samples[index].sample_id} {one_line(error)}"
    raise JobError(f"dataset: no {dataset.modality} can be read ({why}); check the files at its path")
