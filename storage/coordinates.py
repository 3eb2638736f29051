"""Coordinates of a run's maps: the sample, the explained class, the label and the prediction of every map.

They lie beside the maps of each explainer as small Zarr arrays, in the form that xarray reads. Their metadata
is created with the arrays, and their values are written when the samples of all shards are merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from storage.files import write_bytes
from storage.layout import COORDINATES, ROWS, ArrayLayout, Layout
from storage.maps import CODEC
from storage.samples import each_sample, each_sample_of_shards

_FACTS = ["sample_id", "targets", "label", "prediction"]  # columns of the samples
NOTHING = -1  # stored in place of a class that there is not; xarray reads it as NaN


def metadata(array: ArrayLayout) -> bytes:
    """Return the content of the ``zarr.json`` of a coordinate."""
    return _empty(array.rows, array.dtype)


def write_coordinates(root: Path, layout: Layout) -> list[Path]:
    """Write the coordinates of every explainer from ``samples.parquet``; return their files."""
    found = coordinates_of(each_sample(root, _FACTS), layout)
    files: list[Path] = []
    stored: dict[str, bytes] = {}
    for path, array in layout.coordinates.items():
        name, file = path.rpartition("/")[2], root / array.shard(path, 0)
        if name not in stored:  # the same for all explainers
            stored[name] = _stored(array.rows, array.dtype, found[name])["c/0"]
        files.append(write_bytes(file, stored[name]))
    return files


def read_coordinates(root: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    """Return the coordinates as xarray reads them; those of classes are float64, NaN where there is none.

    They are read from the table of samples, or else from the shards', so that a run has them before its
    tables are written.

    Raises
    ------
    UnreadableError
        If the samples of a shard are missing or damaged.
    """
    merged = (root / "samples.parquet").exists()
    samples = each_sample(root, _FACTS) if merged else each_sample_of_shards(root, layout.shards)
    found = coordinates_of(samples, layout)
    classes = {name: found[name].astype(np.float64) for name in COORDINATES if name != ROWS}
    for values in classes.values():
        values[values == NOTHING] = np.nan
    return {ROWS: found[ROWS], **classes}


def coordinates_of(samples: Iterable[Mapping[str, Any]], layout: Layout) -> dict[str, NDArray[Any]]:
    """Return the coordinates of every map: the samples' ids as str, and int64 or :data:`NOTHING`."""
    each = layout.manifest.targets_per_image
    rows = list(_rows(samples, each))
    columns = list(zip(*rows, strict=True))
    ids = np.array(columns[0], np.dtypes.StringDType())
    classes = [name for name in COORDINATES if name != ROWS]
    return {ROWS: ids} | dict(zip(classes, (np.array(each, np.int64) for each in columns[1:]), strict=True))


def _rows(samples: Iterable[Mapping[str, Any]], each: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield sample, target, label and prediction of each of a sample's ``each`` maps."""
    for sample in samples:
        label, prediction = (
            NOTHING if sample[key] is None else sample[key] for key in ("label", "prediction")
        )
        targets = [*sample["targets"], *[NOTHING] * each][:each]
        yield from ((sample["sample_id"], target, label, prediction) for target in targets)


@cache  # the same for all explainers
def _empty(rows: int, dtype: str) -> bytes:
    return _stored(rows, dtype, None)["zarr.json"]


def _stored(rows: int, dtype: str, values: NDArray[Any] | None) -> dict[str, bytes]:
    """Return the files of a coordinate with these values, or its metadata alone."""
    held: dict[str, Any] = {}
    classes = dtype != COORDINATES[ROWS]
    created = zarr.create_array(
        MemoryStore(held),
        shape=(rows,),
        chunks=(rows,),
        dtype=dtype,
        compressors=CODEC,
        fill_value=NOTHING if classes else "",
        attributes={"_FillValue": NOTHING} if classes else {},
        dimension_names=(ROWS,),
        zarr_format=3,
    )
    if values is not None:
        created[:] = values
    return {name: buffer.to_bytes() for name, buffer in held.items()}
