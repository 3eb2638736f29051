"""NumPy: one ``.npz`` file per explainer, which the explainer ``maps`` of another job reads."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.run import Run
from tasks.export.reading import each_part
from tasks.export.registry import EVERY, exports

NO_TARGET = -1  # in place of a class


@exports.register
class Npz:
    """``<explainer>.npz`` with the arrays ``maps``, ``ids`` and ``targets``, and ``samples.parquet``."""

    name: ClassVar[str] = "npz"
    title: ClassVar[str] = "one .npz file of raw maps per explainer, for NumPy and for the explainer maps"
    modalities: ClassVar[frozenset[str]] = EVERY

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write the files; maps are (n, \\*grid), or (n, k, \\*grid) of k targets per sample."""
        k = run.targets_per_image
        ids, targets = [], []
        for part in each_part(run):
            for sample in part.samples:
                ids.append(sample["sample_id"])
                targets.append([*sample["targets"], *[NO_TARGET] * k][:k])
        told = np.array(targets, np.int64)
        for name, entry in run.explainers.items():
            with zipfile.ZipFile(folder / f"{name}.npz", "w") as archive:
                shape = (run.rows, *([k] if k > 1 else []), *entry.grid)
                _write_rows(archive, "maps", shape, np.dtype(run.manifest.map_dtype), _maps(run, name))
                for key, values in (("ids", np.array(ids)), ("targets", told if k > 1 else told[:, 0])):
                    _write_rows(archive, key, values.shape, values.dtype, iter([values]))
        with run.samples.open("rb") as source, (folder / "samples.parquet").open("wb") as copy:
            shutil.copyfileobj(source, copy)
        return [f"{len(run.explainers)} files of {run.rows:,} maps each, and samples.parquet"]


def _maps(run: Run, explainer: str) -> Iterator[NDArray[np.floating]]:
    """Yield the maps of an explainer, some samples at a time."""
    for part in each_part(run):
        yield part.maps(explainer).astype(run.manifest.map_dtype, copy=False)


def _write_rows(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    parts: Iterator[NDArray],
) -> None:
    """Write an array into an archive part by part, as ``numpy.savez`` writes it at once."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_2_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).tobytes())
