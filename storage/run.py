"""The run folder as one object: what the run is (``run.json``), where things lie, which rows a shard has.

A folder is one of this machine or a prefix on S3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from storage import maps
from storage.files import PARTIAL, sha256_of_json, write_json
from storage.manifest import Manifest, RunMismatchError, continued, plain, read_manifest
from storage.places import is_there, place, remove_tree
from storage.records import finished, read_record, write_record

INPUT_TYPES = {"image": "uint8", "text": "int32", "tensor": "float32"}


@dataclass(frozen=True)
class Run:
    """A run folder and its manifest. Cheap to open: workers do so once a task."""

    root: Path
    manifest: Manifest

    @classmethod
    def create_or_open(cls, store: str | Path, manifest: Manifest) -> Run:
        """Create the run, or continue the one in ``store`` if it is the same or is extended by this one.

        An extension has all explainers and metrics of the run, with the same parameters, and some more.
        Called once, before any worker starts: it also creates the arrays.

        Raises
        ------
        RunMismatchError
            If the folder holds another run (one line, with the fields that differ), or other files.
        ValueError
            If the store is an unknown URL, ``run.json`` cannot be read, or a name cannot be a folder's.
        """
        root = place(store).absolute()
        for name in [*manifest.explainers, *manifest.metrics]:
            if not re.fullmatch(r"\w[\w.:+-]*", name):
                raise ValueError(f"{name!r} cannot name a folder; use letters, digits, '_', '-', '.' and ':'")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if is_there(root / "run.json"):
            known = read_manifest(root)
            wanted = continued(root, known, plain(manifest), now)
        else:
            refuse_other_files(root, "run.json")
            known = None
            wanted = plain(manifest, hash=sha256_of_json(manifest.identity), created=now)
        if wanted != known:
            write_json(root / "run.json", wanted.model_dump(mode="json"))
        run = cls(root, wanted)
        run._create_arrays()
        return run

    @classmethod
    def open(cls, store: str | Path) -> Run:
        """The run in ``store``.

        Raises
        ------
        ValueError
            If there is none, or its ``run.json`` cannot be read or reached.
        """
        root = place(store).absolute()
        if not is_there(root / "run.json"):
            raise ValueError(f"{root} is not a run folder: it has no run.json")
        return cls(root, read_manifest(root))

    @property
    def inputs(self) -> Path:
        """(rows, \\*input_shape): uint8 pixels, int32 tokens, or float32 numbers."""
        return self.root / "inputs.zarr"

    @property
    def masks(self) -> Path:
        """uint8 (rows, H, W): 1 where the object of an image is, 0 throughout where it has no mask."""
        return self.root / "masks.zarr"

    @property
    def activations(self) -> Path:
        """float32 (rows, \\*activation_shape)."""
        return self.root / "activations.zarr"

    def saliency(self, explainer: str) -> Path:
        """The group of an explainer's arrays, a row a map: ``maps``, ``status`` and ``details/<name>``."""
        return self.root / "saliency.zarr" / explainer

    @property
    def samples(self) -> Path:
        """One row an image."""
        return self.root / "samples.parquet"

    @property
    def summary(self) -> Path:
        """Mean and interval of each explainer and metric."""
        return self.root / "summary.parquet"

    @property
    def comparisons(self) -> Path:
        """Pairs of explainers, metric by metric."""
        return self.root / "comparisons.parquet"

    @property
    def costs(self) -> Path:
        """What each explainer takes."""
        return self.root / "costs.parquet"

    @property
    def report(self) -> Path:
        """Folder of the report and its pictures."""
        return self.root / "report"

    @property
    def job(self) -> dict[str, Any]:
        """The resolved job."""
        return self.manifest.job

    @property
    def hash(self) -> str:
        """SHA-256 of what the results depend on, explainers and metrics apart."""
        return self.manifest.hash

    @cached_property
    def explainers(self) -> dict[str, dict[str, Any]]:
        """Name to ``parameters``, ``grid``, ``layer`` and ``details``."""
        return self.manifest.model_dump(mode="json")["explainers"]

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Name to ``parameters`` and ``columns``."""
        return self.manifest.model_dump(mode="json")["metrics"]

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """What each column of every metric says of itself: range, direction, fill."""
        return {name: about for metric in self.metrics.values() for name, about in metric["columns"].items()}

    @property
    def model_fingerprint(self) -> str:
        """Of the weights."""
        return self.manifest.model_fingerprint

    @property
    def geometry(self) -> dict[str, Any]:
        """``resize``, ``crop`` and ``interpolation`` of the run's inputs."""
        return self.manifest.geometry

    @property
    def modality(self) -> str:
        """image, text or tensor."""
        return self.manifest.modality

    @property
    def input_size(self) -> tuple[int, ...]:
        """The sites of the run's inputs: (H, W) of images, (T,) of texts and series."""
        return self.manifest.input_shape[1:]

    @property
    def rows(self) -> int:
        """Number of images."""
        return self.manifest.rows

    @property
    def targets_per_image(self) -> int:
        """Maps an image."""
        return self.manifest.targets_per_image

    @property
    def seed(self) -> int:
        """The job's seed."""
        return int(self.job["seed"])

    @property
    def batch_images(self) -> int:
        """Images per step."""
        return int(self.job["batch"]["images"])

    @property
    def batch_forwards(self) -> int:
        """Forward passes per perturbation step."""
        return int(self.job["batch"]["forwards"])

    def with_half_batches(self) -> Run:
        """The same run with half as many images and forward passes a step, for a shard that was too much."""
        halves = {key: max(1, self.job["batch"][key] // 2) for key in ("images", "forwards")}
        job = self.job | {"batch": self.job["batch"] | halves}
        return Run(self.root, self.manifest.model_copy(update={"job": job}))

    @property
    def shards(self) -> int:
        """How many shards each stage has."""
        return -(-self.rows // self.manifest.shard_rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """First image row of a shard, and the one after its last.

        Raises
        ------
        IndexError
            If there is no such shard.
        """
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} of {self.shards}")
        start = shard * self.manifest.shard_rows
        return start, min(start + self.manifest.shard_rows, self.rows)

    def rows_of(self, shard: int) -> tuple[int, int]:
        """First map row of a shard, and the one after its last: the image rows, times targets per image."""
        start, stop = self.bounds(shard)
        return start * self.targets_per_image, stop * self.targets_per_image

    def drop_activations(self) -> None:
        """Delete the activations; whoever needs them again computes them again.

        Their records, which also stand for the samples' predictions, stay and say so (``cached``); they
        are changed first, so that they never promise what is gone.
        """
        for step in finished(self.root):
            record = read_record(self.root, step) if step.stage == "activations" else None
            if record is None or not record["cached"]:
                continue
            kept = [
                Path(f["path"]) for f in record["files"] if Path(f["path"]).parts[0] != self.activations.name
            ]
            same = {key: record[key] for key in ("rows", "statuses", "seconds", "worker")}
            write_record(self.root, step, files=kept, cached=False, **same)
        remove_tree(self.activations)

    def _create_arrays(self) -> None:
        """Create what is missing; arrays that are there are checked and kept."""
        m, k = self.manifest, self.manifest.targets_per_image
        maps.create_array(
            self.inputs, m.rows, m.input_shape, INPUT_TYPES[m.modality], shard_rows=m.shard_rows
        )
        if m.masks:
            maps.create_array(self.masks, m.rows, m.input_shape[1:], "uint8", shard_rows=m.shard_rows)
        if m.activation_shape is not None:
            shape = m.activation_shape
            maps.create_array(self.activations, m.rows, shape, "float32", shard_rows=m.shard_rows)
        maps.create_group(self.root / "saliency.zarr")
        for name, entry in m.explainers.items():
            about = entry.model_dump(mode="json", include={"parameters", "grid", "layer"})
            maps.create_group(self.saliency(name), about)
            if entry.details:
                maps.create_group(self.saliency(name) / "details")
            layouts = {"maps": (entry.grid, m.map_dtype), "status": ((), "int8")}
            layouts |= {
                f"details/{key}": (detail.shape, detail.dtype) for key, detail in entry.details.items()
            }
            for key, (shape, dtype) in layouts.items():
                path = self.saliency(name) / key
                maps.create_array(path, m.rows * k, shape, dtype, shard_rows=m.shard_rows * k)


def refuse_other_files(root: Path, name: str) -> None:
    """What begins in a folder begins in an empty one; what a killed start left of ``name`` does not count.

    Raises
    ------
    RunMismatchError
        If there is anything else.
    """
    if root.exists() and not root.is_dir():
        raise RunMismatchError(f"{root} is a file; choose another store")
    other = sorted(p.name for p in root.iterdir() if not p.name.endswith(PARTIAL)) if root.exists() else []
    if other:
        raise RunMismatchError(
            f"{root} is not empty and has no {name} (it holds {other[0]}); choose an empty or new store"
        )
