"""From the ``[model]`` table of a job to a classifier and its preprocessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

import torch
from torch import nn

from explainers.models.black_box import Modality
from explainers.models.checkpoints import load_weights
from explainers.models.classifier import Classifier
from explainers.models.clip_sources import (
    check_prompts,
    huggingface_network,
    huggingface_preprocessing,
    open_clip_network,
    open_clip_preprocessing,
)
from explainers.models.model_spec import ModelSpec, Preprocessing, is_file
from explainers.models.sources import (
    called_network,
    timm_network,
    timm_preprocessing,
    torchvision_network,
    torchvision_preprocessing,
)
from explainers.models.tensors import TensorClassifier
from explainers.models.text import TextClassifier
from explainers.models.text_sources import load_text
from explainers.numerics.randomness import global_generators

__all__ = ["ModelSpec", "Preprocessing", "load", "preprocessing"]

_PREPROCESSING = {
    "torchvision": torchvision_preprocessing,
    "timm": timm_preprocessing,
    "open_clip": open_clip_preprocessing,
    "huggingface": huggingface_preprocessing,
}


# Keys that only one modality has.
_ONLY: dict[str, Modality] = {
    **dict.fromkeys(("classes", "templates", "layer", "resize", "crop", "mean", "std"), "image"),
    "max_length": "text",
}
_PLURAL: dict[Modality, str] = {"image": "images", "text": "texts", "tensor": "plain tensors"}


@overload
def load(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    input_size: tuple[int, ...] | None = None,
    modality: Literal["image"] = "image",
) -> Classifier: ...


@overload
def load(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    input_size: tuple[int, ...] | None = None,
    *,
    modality: Literal["text"],
) -> TextClassifier: ...


@overload
def load(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    input_size: tuple[int, ...] | None = None,
    *,
    modality: Literal["tensor"],
) -> TensorClassifier: ...


@overload
def load(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    input_size: tuple[int, ...] | None = None,
    modality: Modality = "image",
) -> Classifier | TextClassifier | TensorClassifier: ...


def load(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    input_size: tuple[int, ...] | None = None,
    modality: Modality = "image",
) -> Classifier | TextClassifier | TensorClassifier:
    """The classifier a job asks for.

    Parameters
    ----------
    spec
        The ``[model]`` table, with paths that lead to the files from here.
    device
        Where it computes.
    input_size
        Of images their own (H, W), used where neither the job nor the source states a crop; of plain tensors
        the shape of the dataset's rows, (T,) or (C, T).
    modality
        What the dataset's inputs are.

    Raises
    ------
    ValueError
        In one line that begins with the key that is wrong (``model.weights: ...``) and says what to do.
    """
    for key, owner in _ONLY.items():
        if owner != modality and getattr(spec, key) is not None:
            raise ValueError(
                f"model.{key}: is for {_PLURAL[owner]}, not for {_PLURAL[modality]}; leave it out"
            )
    classifier: Classifier | TextClassifier | TensorClassifier
    if modality == "text":
        classifier = load_text(spec, device)
    elif modality == "tensor":
        classifier = _of_tensors(spec, device, input_size)
    else:
        classifier = _of_images(spec, device, input_size)
    if spec.num_classes not in (None, classifier.num_classes):
        classifier.close()
        raise ValueError(
            f"model.num_classes: the network has {classifier.num_classes} classes, not {spec.num_classes}"
        )
    return classifier


def _of_images(spec: ModelSpec, device: str | torch.device, input_size: tuple[int, ...] | None) -> Classifier:
    steps = preprocessing(spec)
    size = (steps.crop, steps.crop) if steps.crop is not None else input_size
    if size is None:
        raise ValueError("model.crop: the source states no input size; set crop")
    height, width = size
    return Classifier(
        network_of(spec, device),
        layer=spec.layer,
        input_size=(height, width),
        mean=steps.mean,
        std=steps.std,
        device=device,
    )


def _of_tensors(
    spec: ModelSpec, device: str | torch.device, shape: tuple[int, ...] | None
) -> TensorClassifier:
    if ":" not in spec.source:
        raise ValueError(
            f"model.source: plain tensors need a callable, not {spec.source!r}: package.module:callable or "
            "path/to/file.py:callable"
        )
    if shape is None:
        raise ValueError("input_size: say the shape of the dataset's rows, (T,) or (C, T)")
    return TensorClassifier(network_of(spec, device), shape, device)


def preprocessing(spec: ModelSpec) -> Preprocessing:
    """Resize, crop and normalisation of images: the source's own, with the job's values in their place.

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


def network_of(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    """The network of images or numbers a model table asks for, with its weights; drawn ones are seeded."""
    with global_generators(0, torch.device(device)):
        network = _network(spec, device)
    if spec.source not in _WITH_WEIGHTS and spec.weights is not None and is_file(spec.weights):
        load_weights(network, Path(spec.weights))
    return network


_WITH_WEIGHTS = ("open_clip", "huggingface")  # sources that read files of weights themselves


def _network(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    if spec.source == "open_clip":
        return open_clip_network(spec, device)
    if spec.source == "huggingface":
        return huggingface_network(spec, device)
    if spec.source == "torchvision":
        return torchvision_network(spec)
    if spec.source == "timm":
        return timm_network(spec)
    return called_network(spec)
