"""Checks of a job against the model and the data, made before any worker starts."""

from __future__ import annotations

import math
import platform
from asyncio import CancelledError
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
from prefect.exceptions import ExternalSignal

from explainers.base import OF_LAYER, Need, Parameters
from explainers.models.black_box import BlackBox
from explainers.models.checkpoints import taken_for
from explainers.models.classifier import Classifier
from explainers.models.frozen import Frozen
from explainers.models.loading import load
from explainers.models.modality import MODALITIES
from explainers.models.probes_at_load import probe
from explainers.registry import explainers
from flows.chosen_explainers import Chosen, choose_explainers
from flows.findings import check_findings
from flows.input_form import bands_of, form_of
from flows.job import Job, JobError
from flows.labels import Labels, translated
from flows.plan import shard_images
from flows.recorded_layer import with_recorded_layer
from flows.targets import check_targets, masks_per_image, targets_per_image
from plugins.reasons import first_line
from storage.datasets.dataset import Dataset
from storage.datasets.index import keep_index
from storage.datasets.opening import open_dataset
from storage.manifest import FindingsEntry, Manifest, MetricEntry
from storage.run import Run
from tasks.metrics.base import Metric
from tasks.metrics.base import Need as MetricNeed
from tasks.metrics.preparation import RECORD
from tasks.metrics.registry import metrics

LIBRARIES = (
    "floodlit",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "numpy",
    "pillow",
    "zarr",
    "pyarrow",
    "prefect",
    "dask",
)


def prepare(job: Job) -> Run:
    """Check the job against the model and the data, then create its run folder or open it.

    Raises
    ------
    JobError
        If the job cannot run. The message is one line with the key to change and the choices.
    """
    try:
        bands = bands_of(job.dataset, job.model)
        dataset = open_dataset(job.dataset, bands, job.store)
        geometry, size, stored = form_of(job.model, dataset, bands)
        classifier = load(with_recorded_layer(job), input_size=size, modality=dataset.modality)
        with closing(classifier):
            seen = _probed(job, classifier)
            # The checks need no compiled network, and compiling takes long.
            classifier.use(job.compute.model_copy(update={"compile": False}))
            _check_batches(job, classifier)
            labels = translated(dataset, job.dataset.numbering == "model", classifier)
            _check_shown(job, classifier)
            check_targets(job, classifier.num_classes, dataset, labels)
            targets = targets_per_image(job, dataset)
            chosen = choose_explainers(job, classifier, dataset, targets)
            found = check_findings(job, classifier, chosen)
            scored = _check_metrics(job, classifier, dataset, labels)
            _check_tracking(job)
            return _open_run(
                job, dataset, labels, targets, geometry, stored, classifier, seen, chosen, scored, found
            )
    except ValueError as error:
        raise JobError(str(error)) from error
    except (Exception, KeyboardInterrupt, ExternalSignal, CancelledError):  # the last ones stop the flow
        raise
    except BaseException as error:  # only foreign code raises others, such as a forward pass
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise JobError(
            f"model.source: the network, or a plug-in, ended the check of the job: {reason}"
        ) from error


def _probed(job: Job, classifier: Frozen) -> dict[str, str]:
    """Ask the classifier the probes at load: those of its layer only if an explainer reads the layer."""
    reads = any(explainers.get(name).needs & OF_LAYER for name in job.explainer_names().values())
    return probe(classifier, of_layers=None if reads else False)


def _check_batches(job: Job, classifier: BlackBox) -> None:
    """Raise JobError if this machine runs the job and has less memory than one batch of inputs takes."""
    if job.cluster.kind not in {"local", "cuda"}:
        return
    each = 4 * math.prod(classifier.input_shape)  # bytes of an input in float32
    memory = psutil.virtual_memory().total
    for key in ("images", "forwards"):
        count = getattr(job.batch, key)
        if count * each > memory:
            raise JobError(
                f"batch.{key}: {count} inputs of {each / 1e6:.3g} MB are more than the {memory / 1e9:.3g} GB "
                f"of this machine; take at most {max(1, memory // each // 10)}"
            )


def _check_shown(job: Job, classifier: BlackBox) -> None:
    """Raise JobError if the inputs lack one of the bands that pictures are to show."""
    if job.shown_bands is None:
        return
    if classifier.modality != "image":
        raise JobError(f"shown_bands: is for images, not for {MODALITIES[classifier.modality].plural}")
    channels = classifier.input_shape[0]
    if max(job.shown_bands) >= channels:
        raise JobError(
            f"shown_bands: there is no band {max(job.shown_bands)}; inputs have {channels}, counted from 0"
        )


def _check_metrics(
    job: Job, classifier: BlackBox, dataset: Dataset, labels: Labels
) -> dict[str, tuple[Parameters, Metric]]:
    """Make the job's metrics; raise JobError if one cannot be computed or two give the same column."""
    chosen: dict[str, tuple[Parameters, Metric]] = {}
    columns: set[str] = set()
    for name, parameters in job.metric_parameters().items():
        cls = metrics.get(name)
        _check_needs(name, cls.needs, dataset, labels)
        try:
            chosen[name] = parameters, cls(classifier, parameters)
        except ValueError as error:
            raise JobError(f"metrics: {name}: {error}") from error
        for column in chosen[name][1].columns():
            if column.pooled and not hasattr(cls, "of_mean_curve"):
                raise JobError(
                    f"metrics: {name} has no method of_mean_curve, which its column {column.name} needs"
                )
            if column.name in columns:
                raise JobError(f"metrics: {name} gives the column {column.name}, as another metric does")
            columns.add(column.name)
    _check_headline(job, chosen)
    return chosen


def _check_headline(job: Job, chosen: dict[str, tuple[Parameters, Metric]]) -> None:
    """Raise JobError if a column that is to be shown first is no ranked column of the job's metrics."""
    columns = (column for _, metric in chosen.values() for column in metric.columns())
    ranked = [column.name for column in columns if column.better is not None]
    for name in job.headline or ():
        if name not in ranked:
            raise JobError(
                f"headline: {name} is no ranked column of the job's metrics; choose from {', '.join(ranked)}"
            )


def _check_needs(name: str, needs: frozenset[MetricNeed], dataset: Dataset, labels: Labels) -> None:
    """Raise JobError if the dataset lacks what a metric needs, or has it for no class of the model."""
    if MetricNeed.PIXELS in needs and dataset.modality != "image":
        raise JobError(
            f"metrics: {name} scores maps of images, but the dataset's inputs are {dataset.modality}s"
        )
    there = {
        MetricNeed.BOXES: lambda: any(sample.boxes for sample in dataset.samples),
        MetricNeed.MASKS: lambda: dataset.masks is not None,
    }
    for need, found in there.items():
        if need in needs and not found():
            without = ", ".join(other for other in metrics.names() if need not in metrics.get(other).needs)
            raise JobError(
                f"metrics: {name} needs {need}, but the dataset has none; these metrics need none: {without}"
            )
    by_label = {
        MetricNeed.BOXES: lambda: any(sample.box_labels for sample in dataset.samples),
        MetricNeed.MASKS: lambda: dataset.masks_by_label,
    }
    for need, own in by_label.items():
        if need in needs and labels.indices == {} and own():
            raise JobError(
                f"metrics: {name} needs {need} of the explained class, and no class of the dataset is one of "
                f"the model's: {labels.told}"
            )


def _check_tracking(job: Job) -> None:
    """Raise TrackingError if the MLflow that the job names does not answer.

    MLflow is needed at the end of the job, and is checked now so that the job does not fail then.
    """
    if job.tracking is None:
        return  # MLflow's database is a file beside the store
    from storage.tracking import TrackingError, problem_with  # imported late, see above

    problem = problem_with(job.tracking)
    if problem:
        raise TrackingError(
            f"tracking: {job.tracking} cannot be used: {problem}; start it, correct the "
            "key, or leave it out to use mlflow.db beside the store"
        )


def _open_run(
    job: Job,
    dataset: Dataset,
    labels: Labels,
    targets: int,
    geometry: dict[str, Any],
    stored: Any,
    classifier: BlackBox,
    seen: dict[str, str],
    chosen: dict[str, Chosen],
    scored: dict[str, tuple[Parameters, Metric]],
    found: dict[str, FindingsEntry],
) -> Run:
    """Write the manifest of the checked job, and create its run or open the existing one."""
    layer, choice = None, ""
    if isinstance(classifier, Classifier) and classifier.layer_in_use is not None:
        layer, choice = classifier.layer_in_use, classifier.at_each_layer[0].target_layer.choice
    images = len(dataset.samples)
    reads = any(Need.ACTIVATIONS in each.explainer.needs for each in chosen.values())
    activations = classifier.activation_shape if reads and isinstance(classifier, Classifier) else None
    size = 0 if activations is None else 4 * math.prod(activations)  # bytes per image, float32
    taken = taken_for.get(classifier.network) if isinstance(classifier, Frozen) else None
    kind = MODALITIES[classifier.modality]
    size = max(size, math.prod(classifier.input_shape) * np.dtype(stored).itemsize)
    mask_labels = masks_per_image(dataset)
    size = max(size, mask_labels * math.prod(classifier.input_shape[1:]))
    pixels = math.prod(classifier.input_shape[1:]) * kind.site_pixels
    manifest = Manifest(
        job=job.model_dump(mode="json"),
        identity=job.identity() | {"layer": layer, "maps": RECORD},
        versions={name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        model_fingerprint=classifier.fingerprint,
        dataset_fingerprint=dataset.fingerprint,
        weights={} if taken is None else asdict(taken),
        modality=classifier.modality,
        input_dtype=stored,
        rows=images,
        geometry=geometry,
        num_classes=classifier.num_classes,
        outputs=classifier.outputs.told if isinstance(classifier, Frozen) else "",
        exclusive=classifier.exclusive,
        label_indices=labels.indices,
        named_by_dataset=labels.named,
        labels=labels.told,
        masks=dataset.masks is not None,
        mask_labels=mask_labels,
        left_out=dict(dataset.left_out),
        dataset_read=dataset.told,
        shard_rows=job.batch.shard
        or shard_images(images, len(chosen), job.cluster.expected_workers, pixels, size),
        probes=seen,
        layer_choice=choice,
        targets_per_image=targets,
        input_shape=classifier.input_shape,
        activation_shape=activations,
        explainers={called: each.entry(called, layer) for called, each in chosen.items()},
        metrics={
            name: MetricEntry(
                parameters=parameters.model_dump(mode="json"),
                columns={column.name: asdict(column) for column in metric.columns()},
            )
            for name, (parameters, metric) in scored.items()
        },
        findings=found,
    )
    run = Run.create_or_open(job.store, manifest)
    keep_index(run.root, dataset)
    return run
