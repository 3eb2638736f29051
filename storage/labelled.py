"""Maps of a run as an xarray.DataArray: read where they are used, with the coordinates of every map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from storage import maps
from storage.coordinates import read_coordinates
from storage.files import UnreadableError
from storage.layout import ROWS, ArrayLayout
from storage.records import Step
from storage.run import Run
from storage.verify import check_results


def labelled_maps(run: Run, explainer: str) -> xarray.DataArray:
    """Return the raw maps of an explainer, one row per sample and target, with the run's coordinates.

    Nothing but the coordinates is read before values are asked for. A missing or damaged shard is then an
    error, where Zarr alone gives NaN.

    Raises
    ------
    storage.maps.DamagedShardError
        If the array is not the one that the run describes.
    UnreadableError
        If the samples are missing or damaged, or not all known yet.
    """
    path = run.saliency(explainer) / "maps"
    run.check_arrays(path)
    _check_samples(run)
    check_results(run.root, ["samples.parquet"])
    layout = run.layout.arrays[path.relative_to(run.root).as_posix()]
    known = read_coordinates(run.root, run.layout)
    return xarray.DataArray(
        indexing.LazilyIndexedArray(_Stored(path, layout)),
        dims=layout.names,
        coords={name: (ROWS, values) for name, values in known.items()},
        name="maps",
        attrs={"explainer": explainer},
    )


def _check_samples(run: Run) -> None:
    """Refuse a run of which some samples, or their classes, are not known yet."""
    if run.samples.exists():
        return
    done = run.finished()
    known = sum({Step("inputs", s), Step("activations", s)} <= done for s in range(run.shards))
    if known < run.shards:
        raise UnreadableError(
            f"{run.root} is not complete: the samples of {run.shards - known} of {run.shards} shards are not "
            "known yet, and maps have no names without them; run its job again, or wait until it has ended"
        )


class _Stored(BackendArray):
    """An array of the run, of which xarray reads parts."""

    def __init__(self, path: Path, layout: ArrayLayout) -> None:
        self._path = path
        self.shape, self.dtype = (layout.rows, *layout.shape), np.dtype(layout.dtype)

    def __getitem__(self, key: Any) -> Any:
        basic = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, basic, self._part)

    def _part(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Return a part that is given by one number or slice per axis; whole rows are read."""
        first, *rest = key
        rows = np.arange(self.shape[0])[first]
        start, stop = (int(rows.min()), int(rows.max()) + 1) if np.size(rows) else (0, 0)
        found = maps.read(self._path, start, stop)[rows - start]
        part: NDArray[Any] = found[(*[slice(None)] * np.ndim(rows), *rest)]
        return part
