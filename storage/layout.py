"""The layout of a run folder: which files a run with this manifest may hold, and which step writes each.

Everything follows from the manifest. Paths are relative to the run folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from storage.files import shard_name
from storage.manifest import Manifest
from storage.records import ARRAYS, FINDINGS, STAGES, SUMMARY, SUSPICIONS, Step

TABLES = ("samples.parquet", "summary.parquet", "comparisons.parquet", "costs.parquet")
PICTURES = ("report/contact_sheet.png", "report/curves.png")
SIGNED = (*TABLES, *PICTURES, "accuracy.json")  # by the record SUMMARY; a run may lack all but the tables
FOUND = ("findings.parquet", "clusters.parquet")  # tables that the record FINDINGS signs
# What findings.zarr holds for each explainer, with the names of the axes.
FOUND_ARRAYS = {
    "regions": ("finding", "y", "x"),
    "refined": ("finding", "y", "x"),
    "mean_maps": ("finding", "cell_y", "cell_x"),
    "cluster_maps": ("cluster", "cell_y", "cell_x"),
}
MOST_PARTS = 64  # of the classes, for the stage SUSPICIONS, whose tasks cost a second each
PART_IMAGES = 10  # least images per part; a class with fewer has nothing to test
ROWS = "sample_id"  # the name of the axis of rows
# What is stored of every map beside the maps of each explainer, with its Zarr type. It is written with the
# tables, and SUMMARY signs it as well.
COORDINATES = {"sample_id": "string", "target": "int64", "label": "int64", "prediction": "int64"}
_SITES = {"image": ("y", "x"), "text": ("token",), "tensor": ("position",)}  # names of the axes of inputs
_WHOLE = {step.path.as_posix(): step for step in (ARRAYS, SUMMARY, FINDINGS)}  # records of the whole run
PAGE = "report/index.html"  # made again whenever it is asked for, so no record signs it
DRAWN = "report/components"  # folder of pictures that `floodlit components` draws when it is asked


def sample_part(stage: str, shard: int) -> str:
    """Return the file with the facts that a stage knows about the samples of a shard."""
    return f"samples/{stage}/{shard_name(shard, 'parquet')}"


def score_file(explainer: str, shard: int) -> str:
    """Return the file with an explainer's scores of a shard."""
    return f"scores/explainer={explainer}/{shard_name(shard, 'parquet')}"


def suspicion_file(explainer: str, part: int) -> str:
    """Return the file with what is suspected with an explainer of the classes of a part."""
    return f"suspicions/explainer={explainer}/{shard_name(part, 'parquet')}"


def cluster_file(explainer: str, part: int) -> str:
    """Return the file with the clusters of an explainer's maps in the classes of a part."""
    return f"clusters/explainer={explainer}/{shard_name(part, 'parquet')}"


def _numbered(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return a name for each axis of a shape."""
    return tuple(f"{name}_{axis}" for axis in range(len(shape)))


@dataclass(frozen=True)
class ArrayLayout:
    """Layout of an array: its rows, the shape of a row, its NumPy type, and its rows per shard.

    ``names`` are those of its axes, and ``attributes`` what its metadata says besides; neither changes how
    the array is read.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int
    names: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)

    def shard(self, path: str, number: int) -> str:
        """Return the one file of a shard, for the array at ``path``."""
        # Arrays are divided along the rows only, so every further index is 0.
        return "/".join([path, "c", str(number), *["0"] * len(self.shape)])

    @property
    def shard_bytes(self) -> int:
        """Bytes of a shard in memory; 8 bytes per number at most."""
        return 8 * self.shard_rows * math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The layout of the run with this manifest."""

    manifest: Manifest

    @property
    def shards(self) -> int:
        """Number of shards of each stage."""
        return -(-self.manifest.rows // self.manifest.shard_rows)

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self.shards * (2 + 2 * len(self.manifest.explainers))

    @property
    def parts(self) -> int:
        """Number of parts of the classes, each of which is one step of the stage :data:`SUSPICIONS`."""
        return -(-(self.manifest.num_classes or 0) // self._part_classes)

    def classes_of(self, part: int) -> range:
        """Return the classes of a part."""
        start = part * self._part_classes
        return range(start, min(start + self._part_classes, self.manifest.num_classes or 0))

    @property
    def _part_classes(self) -> int:
        most = min(MOST_PARTS, -(-self.manifest.rows // PART_IMAGES))
        return max(1, -(-(self.manifest.num_classes or 0) // most))

    @cached_property
    def arrays(self) -> dict[str, ArrayLayout]:
        """The arrays by path."""
        m, k = self.manifest, self.manifest.targets_per_image
        sites = _SITES[m.modality]
        names: tuple[str, ...]
        inputs = (m.rows, m.input_shape, m.input_dtype, m.shard_rows, (ROWS, "channel", *sites))
        found = {"inputs.zarr": ArrayLayout(*inputs)}
        if m.masks:
            several, names = ((m.mask_labels,), ("mask_label",)) if m.mask_labels else ((), ())
            shape = (*several, *m.input_shape[1:])
            found["masks.zarr"] = ArrayLayout(m.rows, shape, "uint8", m.shard_rows, (ROWS, *names, *sites))
        if m.activation_shape is not None:
            shape, names = m.activation_shape, _numbered("axis", m.activation_shape)
            found["activations.zarr"] = ArrayLayout(m.rows, shape, "float32", m.shard_rows, (ROWS, *names))
        beside = {"coordinates": " ".join(name for name in COORDINATES if name != ROWS)}
        for name in m.explainers:
            for key, shape, dtype in self._of_explainer(name):
                names = self._axes(key.removeprefix("details/"), shape, m.explainers[name].grid)
                told = {} if "/" in key else beside
                shards = (m.rows * k, shape, dtype, m.shard_rows * k)
                found[f"saliency.zarr/{name}/{key}"] = ArrayLayout(*shards, (ROWS, *names), told)
        return found

    @cached_property
    def coordinates(self) -> dict[str, ArrayLayout]:
        """The arrays of :data:`COORDINATES` by path, each a single shard; earlier runs lack them."""
        rows = self.manifest.rows * self.manifest.targets_per_image
        return {
            f"saliency.zarr/{explainer}/{name}": ArrayLayout(rows, (), kind, rows, (ROWS,))
            for explainer in self.manifest.explainers
            for name, kind in COORDINATES.items()
        }

    @cached_property
    def results(self) -> set[str]:
        """The files that the record SUMMARY may sign."""
        return {*SIGNED, *(array.shard(path, 0) for path, array in self.coordinates.items())}

    @cached_property
    def found(self) -> set[str]:
        """The files that the record FINDINGS may sign."""
        if not self.manifest.findings:
            return set()
        arrays = [f"findings.zarr/{name}/{each}" for name in self.manifest.findings for each in FOUND_ARRAYS]
        groups = ["findings.zarr", *(f"findings.zarr/{name}" for name in self.manifest.findings)]
        metadata = {f"{path}/zarr.json" for path in (*groups, *arrays)}
        return {*FOUND, *metadata, *(f"{path}/c/0/0/0" for path in arrays)}

    def _axes(self, key: str, shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[str, ...]:
        """Return the names of the axes of a row: those of the grid where it ends with the grid."""
        sites = _SITES[self.manifest.modality]
        inner = len(grid) if len(grid) == len(sites) and shape[-len(grid) :] == grid else 0
        return (*_numbered(key, shape[: len(shape) - inner]), *sites[len(sites) - inner :])

    def _of_explainer(self, name: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Yield the name, the shape of a row and the type of each array of an explainer."""
        entry = self.manifest.explainers[name]
        yield "maps", entry.grid, self.manifest.map_dtype
        yield "status", (), "int8"
        for key, detail in entry.details.items():
            yield f"details/{key}", detail.shape, detail.dtype

    @cached_property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The groups of arrays by path, with their attributes."""
        found: dict[str, dict[str, Any]] = {"saliency.zarr": {}}
        for name, entry in self.manifest.explainers.items():
            include = {"parameters", "grid", "layer"}
            found[f"saliency.zarr/{name}"] = entry.model_dump(mode="json", include=include)
            if entry.details:
                found[f"saliency.zarr/{name}/details"] = {}
        return found

    @cached_property
    def metadata(self) -> list[str]:
        """The metadata files of all groups, arrays and coordinates."""
        return [f"{path}/zarr.json" for path in (*self.groups, *self.arrays, *self.coordinates)]

    def has(self, step: Step) -> bool:
        """Whether the run has this step."""
        shared = step.stage in STAGES[:2] and not step.explainer
        own = step.stage in STAGES[2:] and step.explainer in self.manifest.explainers
        if step.stage == SUSPICIONS:
            return step.explainer in self.manifest.findings and 0 <= step.shard < self.parts
        return (shared or own) and 0 <= step.shard < self.shards

    def rows_of(self, step: Step) -> int:
        """Return the number of rows that a step writes; in the stage SUSPICIONS, of its classes."""
        if step.stage == SUSPICIONS:
            return len(self.classes_of(step.shard))
        start = step.shard * self.manifest.shard_rows
        images = min(start + self.manifest.shard_rows, self.manifest.rows) - start
        return images * (1 if step.stage in STAGES[:2] else self.manifest.targets_per_image)

    def files_of(self, step: Step, cached: bool = True) -> set[str]:
        """Return the files that a step writes; ``cached`` says whether activations are stored."""
        shard = step.shard

        def shards(*names: str) -> set[str]:
            return {self.arrays[name].shard(name, shard) for name in names if name in self.arrays}

        match step.stage:
            case "inputs":
                return {sample_part("inputs", shard), *shards("inputs.zarr", "masks.zarr")}
            case "activations":
                stored = shards("activations.zarr") if cached else set()
                return {sample_part("activations", shard), *stored}
            case "saliency":
                keys = [key for key, _, _ in self._of_explainer(step.explainer)]
                return shards(*(f"saliency.zarr/{step.explainer}/{key}" for key in keys))
            case "suspicions":
                return {suspicion_file(step.explainer, shard), cluster_file(step.explainer, shard)}
            case _:
                return {score_file(step.explainer, shard)}

    def owner(self, path: str) -> Step | None:
        """Return the step that writes the file ``path``; None if no step does."""
        step: Step | None = None
        if found := re.fullmatch(r"samples/(\w+)/shard-(\d+)\.parquet", path):
            step = Step(found[1], int(found[2]))
        elif found := re.fullmatch(r"scores/explainer=([^/]+)/shard-(\d+)\.parquet", path):
            step = Step("scores", int(found[2]), found[1])
        elif found := re.fullmatch(r"(?:suspicions|clusters)/explainer=([^/]+)/shard-(\d+)\.parquet", path):
            step = Step(SUSPICIONS, int(found[2]), found[1])
        elif (found := re.fullmatch(r"(.+)/c/(\d+)(/0)*", path)) and found[1] in self.arrays:
            step = self._writer(found[1], int(found[2]))
        # The same number may be written in several ways, of which one is the file's name.
        return step if step and self.has(step) and path in self.files_of(step) else None

    def recorded(self, path: str) -> Step | None:
        """Return the step whose record, or description of a failure, lies at ``path``; None if none does."""
        if path in _WHOLE:
            return _WHOLE[path] if path in self._records else None
        found = re.fullmatch(r"done/(\w+)/(?:([^/]+)/)?shard-(\d+)(?:\.failed)?\.json", path)
        step = Step(found[1], int(found[3]), found[2] or "") if found else None
        named = step and path in (step.path.as_posix(), step.failure_path.as_posix())
        return step if step and named and self.has(step) else None

    @staticmethod
    def _writer(array: str, shard: int) -> Step:
        """Return the step that writes a shard of an array."""
        top, *below = array.split("/")
        if top == "saliency.zarr":
            return Step("saliency", shard, below[0])
        return Step("activations" if top == "activations.zarr" else "inputs", shard)

    @cached_property
    def single_files(self) -> set[str]:
        """The files of which a run has one, whatever the number of its shards."""
        return {"run.json", *self.results, *self.metadata, *self.found, *self._records}

    @property
    def _records(self) -> set[str]:
        """The records of the whole run that it may hold."""
        return {path for path, step in _WHOLE.items() if step != FINDINGS or self.manifest.findings}

    def is_file(self, path: str) -> bool:
        """Whether the run may hold a file at ``path``, apart from records and pictures on demand."""
        return path in self.single_files or self.owner(path) is not None

    def is_folder(self, path: str) -> bool:
        """Whether the run needs a folder at ``path``."""
        if found := re.fullmatch(r"(.+)/c/(\d+)((?:/0)*)", path):
            array = self.arrays.get(found[1])
            # Below the number of a shard lie one folder per axis but the last, which is the file.
            fits = array is not None and found[3].count("/") < len(array.shape)
            return fits and int(found[2]) < self.shards
        return path in self._folders

    @cached_property
    def _folders(self) -> set[str]:
        """The folders whose names do not depend on the number of a shard."""
        explainers = self.manifest.explainers
        leaves = {f"{path}/c" for path in (*self.arrays, *self.coordinates)}
        leaves |= {f"samples/{stage}" for stage in STAGES[:2]}
        leaves |= {f"scores/explainer={name}" for name in explainers} | {f"done/{s}" for s in STAGES[:2]}
        leaves |= {f"done/{stage}/{name}" for stage in STAGES[2:] for name in explainers}
        leaves |= {DRAWN, *self.groups}
        for name in self.manifest.findings:
            leaves |= {f"{folder}/explainer={name}" for folder in ("suspicions", "clusters")}
            leaves.add(f"done/{SUSPICIONS}/{name}")
            leaves |= {f"findings.zarr/{name}/{each}/c/0/0" for each in FOUND_ARRAYS}
        parts = [leaf.split("/") for leaf in leaves]
        return {"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
