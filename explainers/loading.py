"""From the ``[model]`` table of a job to a classifier and its preprocessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from explainers.checkpoints import load_weights
from explainers.classifier import Classifier
from explainers.clip_sources import (
    check_prompts,
    huggingface_network,
    huggingface_preprocessing,
    open_clip_network,
    open_clip_preprocessing,
)
from explainers.model_spec import ModelSpec, Preprocessing, is_file
from explainers.sources import (
    called_network,
    timm_network,
    timm_preprocessing,
    torchvision_network,
    torchvision_preprocessing,
)

__all__ = ["ModelSpec", "Preprocessing", "load", "preprocessing"]

_PREPROCESSING = {
    "torchvision": torchvision_preprocessing,
    "timm": timm_preprocessing,
    "open_clip": open_clip_preprocessing,
    "huggingface": huggingface_preprocessing,
}


def load(
    spec: ModelSpec, device: str | torch.device = "cpu", input_size: tuple[int, int] | None = None
) -> Classifier:
    """The classifier a job asks for.

    Parameters
    ----------
    spec
        The ``[model]`` table, with paths that lead to the files from here.
    device
        Where it computes.
    input_size
        (H, W) of the images themselves, used where neither the job nor the source states a crop.

    Raises
    ------
    ValueError
        In one line that begins with the key that is wrong (``model.weights: ...``) and says what to do.
    """
    steps = preprocessing(spec)
    size = (steps.crop, steps.crop) if steps.crop is not None else input_size
    if size is None:
        raise ValueError("model.crop: the source states no input size; set crop")
    network = _network(spec, device)
    classifier = Classifier(
        network, layer=spec.layer, input_size=size, mean=steps.mean, std=steps.std, device=device
    )
    if spec.num_classes not in (None, classifier.num_classes):
        classifier.close()
        raise ValueError(
            f"model.num_classes: the network has {classifier.num_classes} classes, not {spec.num_classes}"
        )
    return classifier


def preprocessing(spec: ModelSpec) -> Preprocessing:
    """Resize, crop and normalisation: the source's own, with the job's values in their place.

    For torchvision they are those of the named weights, and for a file or random weights those of the
    network's first published weights; for timm those of its data configuration; for open_clip those of the
    named weights at the network's own size; for Hugging Face those of its image processor; a callable has
    none.

    Raises
    ------
    ValueError
        For an unknown source, name or weights, for class names that are missing or have no place, and for a
        crop larger than what it is cut from.
    """
    own = _PREPROCESSING.get(spec.source)
    if own is None and ":" not in spec.source:
        raise ValueError(
            f"model.source: unknown source {spec.source!r}; choose {', '.join(_PREPROCESSING)}, "
            "package.module:callable or path/to/file.py:callable"
        )
    check_prompts(spec)
    steps = Preprocessing() if own is None else own(spec)
    given = {key: getattr(spec, key) for key in ("resize", "crop", "mean", "std")}
    steps = replace(steps, **{key: value for key, value in given.items() if value is not None})
    if steps.resize is not None and steps.crop is not None and steps.crop > steps.resize:
        raise ValueError(f"model.crop: {steps.crop} pixels do not fit into model.resize = {steps.resize}")
    return steps


def _network(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    if spec.source == "open_clip":
        return open_clip_network(spec, device)
    if spec.source == "huggingface":
        return huggingface_network(spec, device)
    if spec.source == "torchvision":
        network = torchvision_network(spec)
    elif spec.source == "timm":
        network = timm_network(spec)
    else:
        network = called_network(spec)
    if spec.weights is not None and is_file(spec.weights):
        load_weights(network, Path(spec.weights))
    return network
