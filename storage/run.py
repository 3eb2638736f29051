"""The run folder as one object: its manifest (``run.json``), its paths and the rows of its shards.

A run folder is a folder of this machine or a prefix on S3.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from storage import contents, maps
from storage.files import PARTIAL, sha256_of_json
from storage.findings import drop_suspicions
from storage.layout import PAGE, Layout
from storage.manifest import (
    ColumnEntry,
    ExplainerEntry,
    Manifest,
    MetricEntry,
    RunMismatchError,
    continued,
    plain,
)
from storage.metadata import create_arrays, sign_arrays
from storage.places import is_there, place, remove_tree
from storage.records import DoneRecord, StageFacts, Step, finished, read_record, write_record
from storage.run_json import JobFacts, job_facts, problems, read_manifest, write_manifest


@dataclass(frozen=True)
class Run:
    """A run folder and its manifest.

    Opening a run is cheap; workers open it once per task.

    Attributes
    ----------
    root
        The run folder.
    manifest
        The content of ``run.json``.
    """

    root: Path
    manifest: Manifest

    @classmethod
    def create_or_open(cls, store: str | Path, manifest: Manifest) -> Run:
        """Create a run, or resume the run in ``store`` if it is the same or ``manifest`` extends it.

        An extension has all explainers and metrics of the run, with the same parameters, and some more. This
        function also creates the arrays, so it is called once, before any worker starts.

        Raises
        ------
        RunMismatchError
            If the folder holds another run or other files. The message is one line with the fields that
            differ.
        ValueError
            If the store is an unknown URL, ``run.json`` cannot be read, or a name cannot be that of a folder.
        """
        root = place(store).absolute()
        for problem in problems(manifest):
            raise ValueError(problem)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known, signed = None, False
        if is_there(root / "run.json"):
            known, signed = read_manifest(root)
            wanted = continued(root, known, plain(manifest), now)
            contents.refuse_blocked(root, Layout(wanted))
            changed = [name for name, how in known.findings.items() if wanted.findings[name] != how]
            drop_suspicions(root, Layout(wanted), changed)
        else:
            refuse_other_files(root, "run.json")
            wanted = plain(manifest, hash=sha256_of_json(manifest.identity), created=now)
        if wanted != known or not signed:
            write_manifest(root, wanted)
        run = cls(root, wanted)
        create_arrays(root, run.layout)
        return run

    @classmethod
    def open(cls, store: str | Path) -> Run:
        """Open the run in ``store``, a folder or an address on S3.

        Raises
        ------
        ValueError
            If there is no run, or its ``run.json`` cannot be read or reached.
        """
        root = place(store).absolute()
        if not is_there(root / "run.json"):
            raise ValueError(f"{root} is not a run folder: it has no run.json")
        return cls(root, read_manifest(root)[0])

    @cached_property
    def layout(self) -> Layout:
        """The files that the run may hold."""
        return Layout(self.manifest)

    def check_arrays(self, *folders: Path) -> None:
        """Check that arrays, and all arrays below groups, are those that the manifest describes.

        Raises
        ------
        storage.maps.DamagedShardError
            If one is not.
        """
        for path, layout in self.layout.arrays.items():
            if any((self.root / path).is_relative_to(folder) for folder in folders):
                maps.check_layout(self.root / path, layout)

    def finished(self) -> set[Step]:
        """Return the recorded steps of this run; records of any other step are ignored."""
        return {step for step in finished(self.root) if self.layout.has(step)}

    def records(self, stage: str | None = None) -> list[DoneRecord]:
        """Read the done-records of this run, or those of one stage, sorted by step; each is a file.

        Raises
        ------
        storage.records.DamagedRecordError
            If one is damaged.
        """
        steps = sorted(step for step in self.finished() if stage in {None, step.stage})
        return [record for step in steps if (record := read_record(self.root, step))]

    @property
    def inputs(self) -> Path:
        """Array (rows, \\*input_shape) of inputs, of the manifest's ``input_dtype``."""
        return self.root / "inputs.zarr"

    @property
    def masks(self) -> Path:
        """Array (rows, H, W) uint8 of masks: 1 on the object, 2 where pixels do not count, else 0.

        It is (rows, labels, H, W) if the manifest has ``mask_labels``.
        """
        return self.root / "masks.zarr"

    @property
    def activations(self) -> Path:
        """Array (rows, \\*activation_shape) float32 of activations at the target layers."""
        return self.root / "activations.zarr"

    def saliency(self, explainer: str) -> Path:
        """Group of an explainer's arrays, with one row per map: ``maps``, ``status``, ``details/<name>``."""
        return self.root / "saliency.zarr" / explainer

    @property
    def samples(self) -> Path:
        """Table with one row per image."""
        return self.root / "samples.parquet"

    @property
    def summary(self) -> Path:
        """Table with the mean and interval of each explainer and metric."""
        return self.root / "summary.parquet"

    @property
    def comparisons(self) -> Path:
        """Table with pairs of explainers, metric by metric."""
        return self.root / "comparisons.parquet"

    @property
    def costs(self) -> Path:
        """Table with the time, forward passes and memory of each explainer."""
        return self.root / "costs.parquet"

    @property
    def report(self) -> Path:
        """Folder of the report and its pictures."""
        return self.root / "report"

    @property
    def page(self) -> Path:
        """The report, one HTML file."""
        return self.root / PAGE

    @property
    def job(self) -> dict[str, Any]:
        """The job with all defaults filled in."""
        return self.manifest.job

    @property
    def job_as_given(self) -> dict[str, Any]:
        """The job without the keys that are not set, which a job file leaves out too: TOML has no null."""
        given: dict[str, Any] = _without_none(self.job)
        return given

    @cached_property
    def _facts(self) -> JobFacts:
        return job_facts(self.root, self.manifest)

    @property
    def hash(self) -> str:
        """SHA-256 of the settings on which the results depend, without explainers and metrics."""
        return self.manifest.hash

    @property
    def name(self) -> str:
        """Name of the job."""
        return self._facts.name

    @property
    def layer(self) -> str | tuple[str, ...] | None:
        """Target layer of the model, or several; None as long as nothing in the run has used a layer."""
        return self.manifest.layer

    @property
    def target(self) -> Any:
        """What the job explains: "predicted", "label", "labels", a number, {"top": k} or {"labels": k}."""
        return self._facts.target

    @property
    def explains_labels(self) -> bool:
        """Whether the job explains every label of an image, so that images have different numbers of maps."""
        return self.target == "labels" or (isinstance(self.target, dict) and "labels" in self.target)

    @property
    def tolerance(self) -> float:
        """Largest share of the explainers' steps that may fail in a job that succeeds, in [0, 1]."""
        return self._facts.tolerance

    @property
    def explainers(self) -> dict[str, ExplainerEntry]:
        """The explainers by name, in the order of the job."""
        return self.manifest.explainers

    @property
    def metrics(self) -> dict[str, MetricEntry]:
        """The metrics by name, in the order of the job."""
        return self.manifest.metrics

    @property
    def columns(self) -> dict[str, ColumnEntry]:
        """The columns of all metrics by name."""
        return {name: column for metric in self.metrics.values() for name, column in metric.columns.items()}

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model's weights."""
        return self.manifest.model_fingerprint

    @property
    def geometry(self) -> dict[str, Any]:
        """``resize``, ``crop`` and ``interpolation`` with which the run's inputs were made."""
        return self.manifest.geometry

    def class_of(self, label: int | None) -> int | None:
        """Return the model's class for a label of the dataset; None if there is none."""
        indices = self.manifest.label_indices
        return label if label is None or indices is None else indices.get(label)

    @property
    def accuracy(self) -> Path:
        """File with the model's top-1 accuracy on the labels, written when all predictions are there."""
        return self.root / "accuracy.json"

    @property
    def modality(self) -> Literal["image", "text", "tensor"]:
        """Kind of the inputs."""
        return self.manifest.modality

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of the sites of an input: (H, W) for images, (T,) for texts and series."""
        return self.manifest.input_shape[1:]

    @property
    def rows(self) -> int:
        """Number of images, texts or arrays."""
        return self.manifest.rows

    @property
    def targets_per_image(self) -> int:
        """Number of maps per image and explainer."""
        return self.manifest.targets_per_image

    @property
    def seed(self) -> int:
        """Seed of the job."""
        return self._facts.seed

    @property
    def batch_images(self) -> int:
        """Number of images per step."""
        return self._facts.batch.images

    @property
    def batch_forwards(self) -> int:
        """Number of forward passes per perturbation step."""
        return self._facts.batch.forwards

    def with_half_batches(self) -> Run:
        """Return the same run with half the batch sizes, for the second attempt at a shard."""
        halves = {key: max(1, self.job["batch"][key] // 2) for key in ("images", "forwards")}
        job = self.job | {"batch": self.job["batch"] | halves}
        return Run(self.root, self.manifest.model_copy(update={"job": job}))

    @property
    def shards(self) -> int:
        """Number of shards of each stage."""
        return self.layout.shards

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first image row of a shard, and the row after its last one.

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
        """Return the first map row of a shard, and the row after its last one.

        These are the image rows, times the targets per image.
        """
        start, stop = self.bounds(shard)
        return start * self.targets_per_image, stop * self.targets_per_image

    def drop_activations(self) -> None:
        """Delete the activations; a later job that needs them computes them again.

        Their done-records stay, because they also stand for the samples' predictions. They are changed to say
        that the activations are not there (``cached``). This happens before the deletion, so that a record
        never names files that are gone.
        """
        sign_arrays(self.root, self.layout, without=self.activations.name)
        for record in self.records("activations"):
            if not record.facts.cached:
                continue
            kept = [Path(f.path) for f in record.files if Path(f.path).parts[0] != self.activations.name]
            write_record(
                self.root,
                record.step,
                rows=record.rows,
                statuses=record.statuses,
                files=kept,
                seconds=record.seconds,
                worker=record.worker,
                facts=StageFacts(cached=False),
            )
        remove_tree(self.activations)


def refuse_other_files(root: Path, name: str) -> None:
    """Check that a new run or training starts in an empty folder.

    Files that a killed process left while it was writing are ignored.

    Parameters
    ----------
    root
        The folder.
    name
        The file that is missing in the folder, for the message.

    Raises
    ------
    RunMismatchError
        If the folder holds any other file.
    """
    if root.exists() and not root.is_dir():
        raise RunMismatchError(f"{root} is a file; choose another store")
    other = sorted(p.name for p in root.iterdir() if not p.name.endswith(PARTIAL)) if root.exists() else []
    if other:
        raise RunMismatchError(
            f"{root} is not empty and has no {name} (it holds {other[0]}); choose an empty or new store"
        )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
