"""Load models of images from Hugging Face: image classifiers, and models with an image and a text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from explainers.models.huggingface import (
    check_problem,
    configuration,
    from_pretrained,
    pretrained_model,
)
from explainers.models.huggingface_clip import huggingface_clip
from explainers.models.model_spec import ModelSpec, Preprocessing
from explainers.models.transforms import UnreadableStepsError, of_processor

# By the model type in the configuration, the class of the whole model: those whose text tower gives an
# embedding per class that is compared with the image's.
TWO_TOWERS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def has_text_tower(spec: ModelSpec) -> bool:
    """Whether the model compares images with texts, so that the job names its classes.

    Raises
    ------
    ValueError
        In one line that begins with the key: the configuration cannot be read, or the model is neither an
        image classifier nor a model with two towers.
    """
    return not _is_classifier(spec, _config(spec))


def huggingface_preprocessing(spec: ModelSpec) -> Preprocessing:
    """The preprocessing of a Hugging Face model of images: that of its image processor.

    Raises
    ------
    UnreadableStepsError
        If the folder has no image processor, or one whose steps are not known.
    ValueError
        In one line: the image processor cannot be read.
    """
    from transformers import AutoImageProcessor

    folder, config = Path(str(spec.name)), _config(spec)
    timms = config.model_type == "timm_wrapper"  # its preprocessing is in config.json
    if folder.is_dir() and not timms and not any((folder / name).exists() for name in _PROCESSOR_FILES):
        raise UnreadableStepsError(f"has no image processor (there is no {_PROCESSOR_FILES[0]})")
    processor = from_pretrained(spec, AutoImageProcessor.from_pretrained, trust_remote_code=False)
    channels = getattr(config, "num_channels", None) or 3
    return of_processor(processor, spec.mean, spec.std, channels)


def huggingface_network(spec: ModelSpec, device: str | torch.device) -> nn.Module:
    """A Hugging Face model as a classifier of images, in float32, with its weights.

    An image classifier has its own classes. A model with two towers gets those of the job; it is on
    ``device``.

    Raises
    ------
    ValueError
        In one line that begins with the key: the model is neither, or its weights cannot be found, downloaded
        or loaded, or lack tensors.
    """
    config = _config(spec)
    if not _is_classifier(spec, config):
        return huggingface_clip(spec, device, TWO_TOWERS[config.model_type])
    from transformers import AutoModelForImageClassification

    network: nn.Module
    if spec.weights == "none" and spec.num_classes is not None:
        config.num_labels = spec.num_classes
    check_problem(spec, config)
    if spec.weights == "none":
        network = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    else:
        network = pretrained_model(spec, AutoModelForImageClassification)
    return network


def _config(spec: ModelSpec) -> Any:
    return configuration(spec, "google/vit-base-patch16-224 or openai/clip-vit-base-patch32")


def _is_classifier(spec: ModelSpec, config: Any) -> bool:
    """Whether the configuration is an image classifier's; False for a model with two towers.

    The architectures that a configuration names decide. A configuration that was made without a model names
    none; it then may become whatever its model type can be.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    names = config.architectures or []
    classifiers = [[entry] if isinstance(entry, str) else list(entry) for entry in NAMES.values()]
    if any(name in entry for name in names for entry in classifiers):
        return True
    whole = TWO_TOWERS.get(config.model_type)
    if whole is not None and (not names or whole in names):
        return False
    if not names and config.model_type in NAMES:
        return True
    found = names[0] if names else f"model of the type {config.model_type!r}"
    relative = NAMES.get(config.model_type)
    has = f" such as {relative if isinstance(relative, str) else relative[0]}" if relative else ""
    raise ValueError(
        f"model.name: {spec.name} is a {found}, which is neither an image classifier nor a model of images "
        f"and texts ({' or '.join(TWO_TOWERS.values())}); give a classifier{has}, or give this one as a "
        "callable that returns logits (B, K)"
    )
