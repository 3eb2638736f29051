"""Builds the parts that a run's job names: classifier, dataset, explainers and metrics.

The classifier and the dataset are loaded once per worker process.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explainers.base import Explainer
from explainers.models.black_box import BlackBox
from explainers.models.compute import Compute
from explainers.models.loading import ModelSpec, load
from explainers.models.modality import ModalityName
from explainers.registry import explainers
from explainers.several_layers import make_explainer
from storage.datasets.dataset import Dataset
from storage.datasets.opening import open_again
from storage.datasets.reading import RGB, Bands
from storage.datasets.spec import DatasetSpec
from storage.run import Run
from tasks.explain_again import ExplainAgain
from tasks.metrics.base import Metric
from tasks.metrics.registry import metrics


def device() -> str:
    """The device of this worker: "cuda" if PyTorch sees a GPU, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def classifier_of(run: Run) -> BlackBox:
    """The run's classifier, loaded once per worker process and set to the run's ``[compute]``.

    Its layer, or layers, are those that the run recorded, so that no worker looks for others.
    """
    spec = ModelSpec.model_validate(run.job["model"])
    if run.layer is not None:
        spec = spec.model_copy(update={"layer": run.layer})
    # For plain tensors it is the shape of one row of the dataset.
    shape = tuple(run.geometry.get("shape", run.input_size))
    return _classifier(spec, shape, run.modality, device(), compute_of(run))


@lru_cache(maxsize=1)
def _classifier(
    spec: ModelSpec, input_size: tuple[int, ...], modality: ModalityName, where: str, compute: Compute
) -> BlackBox:
    # Weights that are created in inference mode never allow gradients, and the cache keeps them.
    with torch.inference_mode(False):
        classifier = load(spec, where, input_size, modality)
        classifier.use(compute)
        return classifier


def class_names_of(run: Run, classifier: BlackBox) -> list[str] | None:
    """The names of the classes of the run's classifier, as they are shown; None if they are not known."""
    if run.manifest.named_by_dataset:
        return dataset_of(run).classes
    return None if classifier.class_names is None else [each.name for each in classifier.class_names]


def compute_of(run: Run) -> Compute:
    """The run's ``[compute]``: precision, TF32 and compilation of its forward passes."""
    return Compute.model_validate(run.job["compute"])


def dataset_of(run: Run) -> Dataset:
    """The run's dataset, opened once per worker process.

    Raises
    ------
    storage.datasets.opening.ChangedDatasetError
        If it is not what it was when the run was planned.
    """
    manifest = run.manifest
    bands = RGB
    if manifest.modality == "image" and manifest.input_dtype != "int32":  # which only texts have
        bands = Bands(manifest.input_shape[0], manifest.input_dtype)
    spec = DatasetSpec.model_validate(run.job["dataset"])
    return _dataset(spec, bands, run.root, manifest.dataset_fingerprint)


@lru_cache(maxsize=1)
def _dataset(spec: DatasetSpec, bands: Bands, root: Path, fingerprint: str) -> Dataset:
    return open_again(spec, bands, root, fingerprint)


def explainer_class(run: Run, name: str) -> type[Explainer]:
    """The class of the explainer that the run calls ``name``."""
    found: type[Explainer] = explainers.get(run.explainers[name].name or name)
    return found


def explainer_of(run: Run, name: str, classifier: BlackBox) -> Explainer:
    """The explainer that the run calls ``name``, with the parameters that the run was created with."""
    cls: Any = explainer_class(run, name)  # whose needs the classifier meets
    return make_explainer(cls, classifier, cls.Parameters(**run.explainers[name].parameters))


def metric_of(run: Run, name: str, classifier: BlackBox) -> Metric:
    """The metric called ``name``, with the parameters that the run was created with."""
    cls = metrics.get(name)
    made: Metric = cls(classifier, cls.Parameters(**run.metrics[name].parameters))
    return made


def explain_again(
    run: Run, name: str, explainer: Explainer, classifier: BlackBox, targets: Tensor, seeds: Tensor
) -> ExplainAgain:
    """The run's explainer called ``name``, to explain maps with these targets and seeds again.

    Parameters
    ----------
    explainer, classifier
        The explainer, made for this classifier.
    targets, seeds
        (B,) int64, of the maps.
    """

    return ExplainAgain(
        explainer,
        classifier,
        lambda asked: explainer_of(run, name, asked),
        targets,
        seeds,
        run.batch_images,
        run.batch_forwards,
    )
