"""Load the classifier, and the preprocessing, that the ``[model]`` table of a job describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import torch
from torch import nn

from explainers.models.checkpoints import load_weights
from explainers.models.class_names import class_names, names_of_labels
from explainers.models.classifier import Classifier
from explainers.models.clip_sources import (
    check_prompts,
    open_clip_network,
    open_clip_preprocessing,
)
from explainers.models.given_steps import with_given_steps
from explainers.models.huggingface_images import (
    has_text_tower,
    huggingface_network,
    huggingface_preprocessing,
)
from explainers.models.modality import MODALITIES, ModalityName
from explainers.models.model_spec import PROGRAMS, ModelSpec, Preprocessing, is_file
from explainers.models.programs import exported_network, torchscript_network
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
from explainers.models.transforms import UnreadableStepsError
from explainers.numerics.randomness import global_generators

__all__ = ["ModelSpec", "Preprocessing", "load", "preprocessing"]


@dataclass(frozen=True)
class _Source:
    """A source of networks for images, or for numbers.

    Attributes
    ----------
    network
        Builds the network on a device, with published weights if the job names them.
    preprocessing
        Gives the source's own preprocessing, before the job's values replace parts of it.
    reads_weights
        Whether ``network`` reads a file of weights as well.
    takes_classes
        Says whether the job names the classes of this model, and their prompts; None where it never does.
    any_channels
        Whether networks can be built for another number of channels than the source's own.
    training_only
        Beginnings of names of tensors in a file that only training needs.
    """

    network: Callable[[ModelSpec, str | torch.device], nn.Module]
    preprocessing: Callable[[ModelSpec], Preprocessing]
    reads_weights: bool = False
    takes_classes: Callable[[ModelSpec], bool] | None = None
    any_channels: bool = False
    training_only: tuple[str, ...] = ()


def _moved_later(
    build: Callable[[ModelSpec], nn.Module],
) -> Callable[[ModelSpec, str | torch.device], nn.Module]:
    """A builder that ignores the device, because the classifier moves the network there itself."""
    return lambda spec, device: build(spec)  # noqa: ARG005


def _no_steps(spec: ModelSpec) -> Preprocessing:  # noqa: ARG001
    """The preprocessing of a source that states none."""
    return Preprocessing()


_SOURCES = {
    "torchvision": _Source(
        _moved_later(torchvision_network),
        torchvision_preprocessing,
        training_only=("aux1.", "aux2.", "AuxLogits."),
    ),
    "timm": _Source(_moved_later(timm_network), timm_preprocessing, any_channels=True),
    "open_clip": _Source(
        open_clip_network,
        open_clip_preprocessing,
        reads_weights=True,
        takes_classes=lambda spec: True,  # noqa: ARG005
    ),
    "huggingface": _Source(
        huggingface_network, huggingface_preprocessing, reads_weights=True, takes_classes=has_text_tower
    ),
    "torchscript": _Source(torchscript_network, _no_steps, reads_weights=True, any_channels=True),
    "exported": _Source(exported_network, _no_steps, reads_weights=True, any_channels=True),
}
_CALLABLE = _Source(_moved_later(called_network), _no_steps, any_channels=True)

# Keys that only one modality has.
_ONLY: dict[str, ModalityName] = {
    **dict.fromkeys(
        (
            *("classes", "templates", "class_embeddings"),
            *("layer", "resize", "fit", "crop", "channels", "mean", "std"),
        ),
        "image",
    ),
    "max_length": "text",
}


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
    modality: ModalityName = "image",
) -> Classifier | TextClassifier | TensorClassifier: ...


def load(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    input_size: tuple[int, ...] | None = None,
    modality: ModalityName = "image",
) -> Classifier | TextClassifier | TensorClassifier:
    """Load the classifier that a job names.

    Parameters
    ----------
    spec
        The ``[model]`` table, with paths that are absolute or relative to the working directory.
    device
        The device that the classifier computes on.
    input_size
        For images their own (H, W) in pixels, used if neither the job nor the source states a crop. For plain
        tensors the shape of the dataset's rows, (T,) or (C, T).
    modality
        The kind of the dataset's inputs.

    Returns
    -------
    Classifier, TextClassifier or TensorClassifier
        The classifier of that modality; the caller closes it.

    Raises
    ------
    ValueError
        In one line that begins with the key that is wrong (``model.weights: ...``) and says what to do.
    """
    for key, owner in _ONLY.items():
        if owner != modality and getattr(spec, key) is not None:
            wanted, found = MODALITIES[owner].plural, MODALITIES[modality].plural
            raise ValueError(f"model.{key}: is for {wanted}, not for {found}; leave it out")
    if spec.weights_key is not None and not is_file(spec.weights or ""):
        raise ValueError("model.weights_key: only a file of weights has keys; leave it out")
    classifier: Classifier | TextClassifier | TensorClassifier
    if modality == "text":
        classifier = load_text(spec, device)
    elif modality == "tensor":
        classifier = _of_tensors(spec, device, input_size)
    else:
        classifier = _of_images(spec, device, input_size)
    try:
        # A network that is built with one output has two classes.
        if spec.num_classes not in (None, classifier.num_classes, classifier.outputs.columns):
            raise ValueError(
                f"model.num_classes: the network has {classifier.num_classes} classes, not {spec.num_classes}"
            )
        classifier.class_names = class_names(spec, classifier.num_classes) or classifier.class_names
    except BaseException:
        classifier.close()
        raise
    return classifier


def _of_images(spec: ModelSpec, device: str | torch.device, input_size: tuple[int, ...] | None) -> Classifier:
    steps = preprocessing(spec)
    size = steps.size or input_size
    if size is None:
        raise ValueError("model.crop: the source states no input size; set crop")
    height, width = size
    network = network_of(spec, device)
    classifier = Classifier(
        network,
        layer=spec.layer,
        input_size=(height, width),
        mean=steps.mean,
        std=steps.std,
        device=device,
        output=spec.output,
        returns=spec.returns,
        activation=spec.activation,
    )
    # As Hugging Face's networks have them.
    labels = getattr(getattr(network, "config", None), "id2label", None)
    if isinstance(labels, Mapping):
        classifier.class_names = names_of_labels(labels, classifier.num_classes)
    return classifier


def _of_tensors(
    spec: ModelSpec, device: str | torch.device, shape: tuple[int, ...] | None
) -> TensorClassifier:
    if ":" not in spec.source and spec.source not in PROGRAMS:
        raise ValueError(
            f"model.source: plain tensors need {' or '.join(PROGRAMS)}, or a callable, not {spec.source!r}: "
            "package.module:callable or path/to/file.py:callable"
        )
    if shape is None:
        raise ValueError("input_size: give the shape of the dataset's rows, (T,) or (C, T)")
    return TensorClassifier(
        network_of(spec, device), shape, device, spec.output, spec.returns, spec.activation
    )


def preprocessing(spec: ModelSpec) -> Preprocessing:
    """Resize, crop and normalisation of images: the source's own, each replaced where the job gives a value.

    - torchvision: those of the named weights; for a file or random weights, those of the network's first
      published weights, unless the file is the file of others.
    - timm: those of its data configuration.
    - open_clip: those of the named weights, at the network's own size.
    - Hugging Face: those of the model's image processor.
    - A callable or a program has none.

    Raises
    ------
    ValueError
        If the source, the name or the weights are unknown, if class names are missing or not allowed, if what
        the source does is not known and the job does not say all of it, or if the crop is larger than the
        resized image.
    """
    source = _source_of(spec)
    if source.takes_classes is not None and source.takes_classes(spec):
        check_prompts(spec)
    else:
        _refuse_prompts(spec, source)
    keys = ("resize", "crop", "mean", "std")
    try:
        steps = source.preprocessing(spec)
    except UnreadableStepsError as error:
        if missing := [key for key in keys if getattr(spec, key) is None]:
            raise ValueError(
                f"model.{missing[0]}: {spec.name} {error}; Floodlit cannot do the same by itself: say with "
                "the keys resize, crop, mean and std how its images are prepared"
            ) from error
        return with_given_steps(Preprocessing(), spec)
    if spec.given_channels not in (None, steps.channels) and not source.any_channels:
        raise ValueError(
            f"model.channels: {spec.name} takes {steps.channels}, not {spec.given_channels}; for others give "
            "a timm network, or a callable that returns the network"
        )
    return with_given_steps(steps, spec)


def _refuse_prompts(spec: ModelSpec, source: _Source) -> None:
    for key in ("classes", "templates", "class_embeddings"):
        if getattr(spec, key) is not None:
            if source.takes_classes is not None:
                raise ValueError(f"model.{key}: {spec.name} has classes of its own; leave the key out")
            takers = [name for name, each in _SOURCES.items() if each.takes_classes is not None]
            raise ValueError(f"model.{key}: only {' and '.join(takers)} take it; leave it out")


def network_of(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    """The network of images or numbers that a model table names, with its weights; random ones are seeded."""
    source = _source_of(spec)
    # Every worker has to draw the same random weights.
    with global_generators(0, torch.device(device)):
        network = source.network(spec, device)
    if not source.reads_weights and spec.weights is not None and is_file(spec.weights):
        load_weights(network, Path(spec.weights), spec.weights_key, source.training_only)
    return network


def _source_of(spec: ModelSpec) -> _Source:
    if ":" in spec.source:
        return _CALLABLE
    if spec.source not in _SOURCES:
        raise ValueError(
            f"model.source: unknown source {spec.source!r}; choose {', '.join(_SOURCES)}, "
            "package.module:callable or path/to/file.py:callable"
        )
    return _SOURCES[spec.source]
