"""P-TAME: a small trained head reads an auxiliary network's features and draws every class's map at once.

Ntrougkas, Mezaris and Patras, "P-TAME: explain any image classifier with trained perturbations", arXiv
2501.17813; IEEE OJSP 2025. What the released behaviour leaves open is our CHOICE:

- Upsampling does not align corners; where a tap's side is not the first one's over a power of two, the last
  step goes to the first tap's size directly.
- A constant map, which min-max leaves undefined, is zero.
- ``output`` offers the sigmoid of the logits besides: what the classifier saw images through in training.
  Min-max of the logits, as released, ranks alike and leaves the background grey, which costs energy-based
  metrics and soft masks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.loading import network_of
from explainers.models.model_spec import ModelSpec
from explainers.numerics.batching import in_chunks
from explainers.numerics.masking import rescaled
from explainers.registry import register

Output = Literal["minmax", "sigmoid"]

_CONFIG = "floodlit"  # the key of the configuration in the file's metadata
_HEAD, _AUXILIARY = "head.", "auxiliary."  # what names of tensors begin with
_SHORT = 12  # characters of a fingerprint that a message shows


class Head(nn.Module):
    """The trained part: maps of chosen classes from the features of an auxiliary network.

    Each tap goes through a 1x1 convolution and batch normalisation, is added to itself, rectified and
    doubled in size up to the first tap's; a 1x1 convolution of all of them is the maps. That last one and
    the doubling are linear and each acts on its own axes, so it comes first here: few maps are enlarged, not
    many channels.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(c, c, 1) for c in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.classes = nn.Conv2d(sum(channels), num_classes, 1, bias=False)

    def forward(self, features: Sequence[Tensor], classes: Tensor) -> Tensor:
        """(B, k, h, w) maps, before the sigmoid, of classes (k,) of all images, or of their own (B, k)."""
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
    """(B, C, h, w) bilinearly doubled until ``size``, or as near below as doubling goes, and then to it."""
    while maps.shape[-2] * 2 <= size[0] and maps.shape[-1] * 2 <= size[1]:
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
    return (
        maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)
    )


class HeadConfig(BaseModel):
    """What a head was trained with and for; it lies in the same file.

    ``auxiliary`` is a ``[model]`` table, its files relative to the head's, and ``taps`` the modules that are
    read; where its weights are "none", they are in the head's own file. ``mean`` and ``std`` are the
    classifier's, by which the auxiliary network's input is normalised as well. ``training`` is what was told
    of the training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auxiliary: ModelSpec
    taps: tuple[str, ...]
    auxiliary_fingerprint: str
    classifier_fingerprint: str
    num_classes: int
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: dict[str, Any] = Field(default_factory=dict)


def save_head(path: Path, head: Head, config: HeadConfig, auxiliary: Auxiliary) -> None:
    """Write a head, and the weights of its auxiliary network where no source has them."""
    tensors = {f"{_HEAD}{name}": value for name, value in head.state_dict().items()}
    if config.auxiliary.weights == "none":
        own = auxiliary.network.state_dict()
        tensors |= {f"{_AUXILIARY}{name}": value for name, value in own.items()}
    # Copies, since safetensors refuses tensors that share memory.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    save_file(copies, path, {_CONFIG: json.dumps(config.model_dump(mode="json"), sort_keys=True)})


def load_head(
    path: Path, device: str | torch.device = "cpu", auxiliary: Path | None = None
) -> tuple[Head, HeadConfig, Auxiliary]:
    """A head in eval mode with its configuration and auxiliary network.

    Parameters
    ----------
    path
        File of the head.
    device
        Where both compute.
    auxiliary
        The Python file that builds the auxiliary network, in place of the one that the head names.

    Raises
    ------
    ValueError
        In one line: there is no such file, it holds no head, or its auxiliary network is not to be found, or
        another one now.
    """
    config, tensors = _read(path)
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
    head = Head([shape[0] for shape in read.shapes(config.input_size)], config.num_classes)
    _load(head, _named(tensors, _HEAD), path)
    return head.to(device).eval().requires_grad_(False), config, read


def _located(spec: ModelSpec, head: Path, file: Path | None) -> ModelSpec:
    """The table of a head's auxiliary network with its files as they lie from here.

    ``file`` is where the Python file lies that builds the network; the head's note of it leads from the
    head's own folder, and nowhere once the head was copied.
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


def _read(path: Path) -> tuple[HeadConfig, dict[str, Tensor]]:
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
    """(B, h, w) maps in [0, 1] of classes (B,), of inputs (B, 3, H, W): one pass of the auxiliary network."""
    features = auxiliary.features(classifier.normalised(inputs))
    logits = head(features, targets[:, None])[:, 0].float()
    return logits.sigmoid() if output == "sigmoid" else rescaled(logits)


class PTameParameters(base.Parameters):
    """Which head explains, and how its logits become a map."""

    head: Path | None = Field(
        None, description="file of a trained head, or models:/NAME/VERSION in MLflow's registry"
    )
    auxiliary: Path | None = Field(
        None,
        description="Python file that builds the auxiliary network, where it does not lie where the head "
        "has it",
    )
    output: Output = Field(
        "minmax", description="minmax: of each map's logits, as released; sigmoid: the mask of the training"
    )


@register
class PTame:
    """P-TAME (arXiv 2501.17813; IEEE OJSP 2025): maps drawn by a head that was trained for this classifier.

    The classifier itself is not run: the auxiliary network is, once an image, normalised as the classifier
    is. The map is the head's output for the target, min-maxed to [0, 1] as in the released evaluation, or
    its sigmoid; its grid is the first tap's, 56x56 of 224x224 for ResNet-18. `floodlit train` trains heads.
    """

    name: ClassVar[str] = "ptame"
    title: ClassVar[str] = "P-TAME: an attention head trained for this classifier (arXiv 2501.17813)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.TRAINED})
    Parameters: ClassVar[type[base.Parameters]] = PTameParameters

    def __init__(self, classifier: Classifier, parameters: PTameParameters) -> None:
        if parameters.head is None:
            raise ValueError("head: say the file of a trained head, as `floodlit train` makes it")
        config = _read(parameters.head)[0]
        _check(parameters.head, config, classifier)
        self.classifier, self.output = classifier, parameters.output
        self.head, _, self.auxiliary = load_head(parameters.head, classifier.device, parameters.auxiliary)
        self.grid = self.auxiliary.shapes(config.input_size)[0][1:]

    def describe(self) -> Description:
        return Description(self.grid)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        maps = in_chunks(
            lambda rows: maps_of(
                self.head,
                self.auxiliary,
                self.classifier,
                batch.inputs[rows],
                batch.targets[rows],
                self.output,
            ),
            len(batch),
            batch.forwards,
        )
        return Explanation(maps, statuses_of(maps))


def normalisation_of(classifier: Classifier) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, as a configuration keeps them."""
    mean, std = (
        tuple(round(value, 6) for value in each.flatten().tolist())
        for each in (classifier.mean, classifier.std)
    )
    return mean, std


def _check(path: Path, config: HeadConfig, classifier: Classifier) -> None:
    """Refuse a head made for another classifier."""
    facts: list[tuple[str, Any, Any]] = [
        ("classes", config.num_classes, classifier.num_classes),
        ("mean and std", [config.mean, config.std], list(normalisation_of(classifier))),
        ("pixels", "x".join(map(str, config.input_size)), "x".join(map(str, classifier.input_size))),
        ("weights", config.classifier_fingerprint, classifier.fingerprint),
    ]
    for what, trained, here in facts:
        if trained != here:
            theirs, ours = (value[:_SHORT] if what == "weights" else value for value in (trained, here))
            raise ValueError(
                f"head: {path} was trained for another classifier, whose {what} are {theirs}, here {ours}; "
                "train one for this classifier with `floodlit train`"
            )
