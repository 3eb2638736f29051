"""The trained head of P-TAME: its network, its maps, and the file that keeps it with its configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.loading import network_of
from explainers.models.model_spec import ModelSpec
from explainers.numerics.masking import rescaled

Output = Literal["minmax", "sigmoid"]

_CONFIG = "floodlit"  # the key of the configuration in the file's metadata
_HEAD, _AUXILIARY = "head.", "auxiliary."  # prefixes of the tensors' names in the file


class Head(nn.Module):
    """The trained part: it computes maps of chosen classes from the features of an auxiliary network.

    Each tap goes through a 1x1 convolution and batch normalisation, is added to the result, rectified, and
    doubled in size until it has the first tap's size. A 1x1 convolution of all taps together gives the maps.
    This last convolution acts on channels and the doubling on pixels, and both are linear, so the convolution
    comes first here: a few maps are enlarged instead of many channels.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(c, c, 1) for c in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.classes = nn.Conv2d(sum(channels), num_classes, 1, bias=False)

    def forward(self, features: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Compute (B, k, h, w) maps, as logits before the sigmoid.

        Parameters
        ----------
        features
            The taps of the auxiliary network, (B, C_i, h_i, w_i) each; (h, w) is the first tap's size.
        classes
            int64: (k,), the same classes for all images, or (B, k), the classes of each image.
        """
        size = features[0].shape[-2:]
        weights = self.classes.weight[classes][..., 0, 0].split([tap.shape[1] for tap in features], -1)
        maps = []
        for tap, convolution, norm, weight in zip(
            features, self.convolutions, self.norms, weights, strict=True
        ):
            rectified = (norm(convolution(tap)) + tap).relu()
            maps.append(_doubled((weight @ rectified.flatten(2)).unflatten(2, tap.shape[2:]), size))
        return torch.stack(maps).sum(0)


def _doubled(maps: Tensor, size: torch.Size) -> Tensor:
    """Upsample (B, C, h, w) maps bilinearly to ``size``: by doubling, and then by what remains."""
    while maps.shape[-2] * 2 <= size[0] and maps.shape[-1] * 2 <= size[1]:
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
    return (
        maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)
    )


class HeadConfig(BaseModel):
    """The configuration of a head: what it was trained with and for. It is stored in the head's file.

    Attributes
    ----------
    auxiliary
        The ``[model]`` table of the auxiliary network, with files relative to the head's folder. If its
        weights are "none", the head's file holds them.
    taps
        Names of the modules of the auxiliary network whose outputs the head reads.
    auxiliary_fingerprint, classifier_fingerprint
        Fingerprints of the weights of both networks at the time of the training.
    num_classes
        Number of classes of the classifier.
    input_size
        (H, W) of the classifier's input, in pixels.
    exclusive
        Whether the classifier's classes exclude each other, so that the head was trained on their softmax.
    mean, std
        The classifier's normalisation, per channel, which is applied to the auxiliary network's input too.
    training
        Facts about the training, as the program that trained the head recorded them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auxiliary: ModelSpec
    taps: tuple[str, ...]
    auxiliary_fingerprint: str
    classifier_fingerprint: str
    num_classes: int
    exclusive: bool = True
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: dict[str, Any] = Field(default_factory=dict)


def save_head(path: Path, head: Head, config: HeadConfig, auxiliary: Auxiliary) -> None:
    """Write a head to a file, together with the weights of its auxiliary network if no source has them."""
    tensors = {f"{_HEAD}{name}": value for name, value in head.state_dict().items()}
    if config.auxiliary.weights == "none":
        own = auxiliary.network.state_dict()
        tensors |= {f"{_AUXILIARY}{name}": value for name, value in own.items()}
    # The tensors are copied, since safetensors refuses tensors that share memory.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    save_file(copies, path, {_CONFIG: json.dumps(config.model_dump(mode="json"), sort_keys=True)})


def load_head(
    path: Path, device: str | torch.device = "cpu", auxiliary: Path | None = None
) -> tuple[Head, HeadConfig, Auxiliary]:
    """Load a head, in eval mode, with its configuration and its auxiliary network.

    Parameters
    ----------
    path
        File of the head.
    device
        Device of both networks.
    auxiliary
        The Python file that builds the auxiliary network, in place of the one that the head names.

    Raises
    ------
    ValueError
        In one line, if there is no such file, if the file holds no head, or if the auxiliary network is not
        found or has other weights than at the time of the training.
    """
    config, tensors = read_head(path)
    spec = _located(config.auxiliary, path, auxiliary)
    network = network_of(spec, device)
    own = _named(tensors, _AUXILIARY)
    if own:
        _load(network, own, path)
    read = Auxiliary(network, config.taps, device)
    if read.fingerprint != config.auxiliary_fingerprint:
        raise ValueError(
            f"head: {path} was trained on an auxiliary network with other weights than "
            f"{spec.name or spec.source} has now; train it again"
        )
    head = Head([shape[0] for shape in read.shapes(config.input_size, len(config.mean))], config.num_classes)
    _load(head, _named(tensors, _HEAD), path)
    return head.to(device).eval().requires_grad_(False), config, read


def _located(spec: ModelSpec, head: Path, file: Path | None) -> ModelSpec:
    """Return the table of a head's auxiliary network, with paths that are valid from the current folder.

    ``file`` is the Python file that builds the network, or None. A head stores this path relative to its own
    folder, so the stored path is wrong once the head has been copied elsewhere.
    """
    found = spec.relative_to(head.absolute().parent)
    noted, _, name = found.source.rpartition(":")
    if not noted.endswith(".py"):
        if file is not None:
            raise ValueError(
                f"auxiliary: no file builds the auxiliary network of {head}, which is "
                f"{' '.join(filter(None, (spec.source, spec.name)))}; leave the key out"
            )
        return found
    if file is not None:
        if file.suffix != ".py" or not file.is_file():
            raise ValueError(f"auxiliary: there is no Python file {file}")
        return found.model_copy(update={"source": f"{file}:{name}"})
    wanted = Path(noted)
    if not wanted.is_file():
        raise ValueError(
            f"head: {head} reads an auxiliary network built by {wanted.name}:{name}, and "
            f"{os.path.normpath(wanted)} is not there; say where it lies: "
            f'auxiliary = "PATH/{wanted.name}"'
        )
    return found


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"head: the tensors in {path} do not fit {type(module).__name__}; train it again"
        ) from error


def read_head(path: Path) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Read the configuration and the tensors in the file of a head.

    Raises
    ------
    ValueError
        In one line, if there is no such file or it holds no head.
    """
    if not path.is_file():
        raise ValueError(f"head: there is no file {path}; `floodlit train` makes one")
    try:
        with safe_open(path, "pt") as file:
            config = HeadConfig.model_validate_json((file.metadata() or {})[_CONFIG])
            return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, KeyError, ValidationError, OSError) as error:
        raise ValueError(f"head: {path} holds no head of `floodlit train`") from error


@torch.no_grad()
def maps_of(
    head: nn.Module,
    auxiliary: Auxiliary,
    classifier: Classifier,
    inputs: Tensor,
    targets: Tensor,
    output: Output = "minmax",
) -> Tensor:
    """Compute (B, h, w) maps in [0, 1] with one forward pass of the auxiliary network.

    Parameters
    ----------
    classifier
        It normalises the inputs, and is not run.
    inputs
        (B, 3, H, W), pixels in [0, 1].
    targets
        (B,) int64, the class of each map.
    output
        How logits become a map, see :class:`PTameParameters`.
    """
    features = auxiliary.features(classifier.normalised(inputs))
    logits = head(features, targets[:, None])[:, 0].float()
    return logits.sigmoid() if output == "sigmoid" else rescaled(logits)


def normalisation_of(classifier: Classifier) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the classifier's mean and standard deviation per channel, rounded as in a configuration."""
    mean, std = (
        tuple(round(value, 6) for value in each.flatten().tolist())
        for each in (classifier.mean, classifier.std)
    )
    return mean, std
