"""Small classifiers, all seeded: some with explanations known in closed form, some of each common shape.

A classifier made by :func:`pooled` computes in float64, has channels as units and a head that sees their
spatial means alone, so that activations can be made up and everything worked out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from explainers.base import Batch
from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.model_spec import Activation
from explainers.models.ptame_head import Head, HeadConfig, normalisation_of, save_head
from tasks.training.optimisation import new_head

SIZE = 32  # pixels a side

# Parameters of explainers that take thousands of forward passes by default.
SMALL: dict[str, dict[str, object]] = {
    "rise": {"masks": 20},
    "occlusion": {"window": 96, "stride": 64},
    "integrated_gradients": {"steps": 5},
    "smoothgrad": {"samples": 4},
    "gradient_shap": {"samples": 4},
    "kernel_shap": {"cells": 3, "samples": 30},
    "lime": {"cells": 3, "samples": 30},
    "moxi": {"grid": 4, "mode": "both"},
    "shapley": {"grid": 4, "samples": 2},
    "pami": {"preset": "fast"},
}


def parameters(name: str, classifier: Classifier, folder: Path) -> dict[str, object]:
    """Parameters with which an explainer is tried; P-TAME's head, untrained, is written to ``folder``."""
    if name != "ptame":
        return SMALL.get(name, {})
    path = folder / f"{classifier.fingerprint}.safetensors"
    untrained_head(classifier, path)
    return {"head": str(path)}


class Tapped(nn.Module):
    """An auxiliary network with taps of 4, 6 and 8 channels on 16x16, 8x8 and 4x4 cells (of 32x32 pixels)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 4), (4, 6), (6, 8)]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
                for a, b in sizes
            )
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.blocks(inputs).mean((2, 3))


TAPS = ("blocks.0", "blocks.1", "blocks.2")


def tapped() -> nn.Module:
    """The same one every time."""
    return _spread(Tapped(), 9)


def untrained_head(classifier: Classifier, path: Path, **changes: object) -> Head:
    """A random head for a classifier, on :func:`tapped`, in a file; keyword arguments change what it says."""
    auxiliary = Auxiliary(tapped(), TAPS)
    head = new_head(classifier, auxiliary, 0)
    config = {
        "auxiliary": {"source": "toys:tapped", "weights": "none"},
        "taps": TAPS,
        "auxiliary_fingerprint": auxiliary.fingerprint,
        "classifier_fingerprint": classifier.fingerprint,
        "num_classes": classifier.num_classes,
        "exclusive": classifier.exclusive,
        "input_size": classifier.input_size,
        "mean": normalisation_of(classifier)[0],
        "std": normalisation_of(classifier)[1],
    }
    save_head(path, head, HeadConfig.model_validate(config | changes), auxiliary)
    return head


class _Pooled(nn.Module):
    def __init__(self, units: int, head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, units, 4, stride=4), nn.ReLU())
        self.head = head
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs.double()).mean((2, 3)))


def pooled(units: int, head: nn.Module, activation: Activation | None = None) -> Classifier:
    """Any ``head`` from (B, units) spatial means to (B, C) logits; 8x8 inputs, activations (units, 2, 2)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Pooled(units, head)
    return Classifier(network, layer="features", input_size=(8, 8), activation=activation)


def linear(weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Classifier:
    """An additive head: ``logits = means @ weight + bias``, with ``weight`` (U, C)."""
    head = nn.Linear(*weight.shape)
    head.weight.data = weight.double().T.contiguous()
    head.bias.data = torch.zeros(weight.shape[1]) if bias is None else bias.double()
    return pooled(len(weight), head, activation)


def mlp(units: int, classes: int, seed: int, activation: Activation | None = None) -> Classifier:
    """A head where units interact: linear, ReLU, linear, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Sequential(nn.Linear(units, 6), nn.ReLU(), nn.Linear(6, classes))
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return pooled(units, head, activation)


class _Proportion(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.features, self.weight = nn.Identity(), weight

    def forward(self, inputs: Tensor) -> Tensor:
        share = (self.features(inputs) * self.weight).sum((1, 2, 3))
        return torch.stack([share, 1 - share], 1).log()


def proportion(weight: Tensor) -> Classifier:
    """Class 0 has the probability ``(inputs * weight).sum()``, linear in the pixels; ``weight`` (3, H, W).

    Weights add up to at most 1. A hidden pixel is 0.
    """
    return Classifier(_Proportion(weight), layer="features", input_size=tuple(weight.shape[1:]))


class Weakest(nn.Module):
    """Logits (0, smallest mean among ``needed`` - threshold): all of ``needed`` or nothing."""

    def __init__(self, needed: list[int], threshold: float) -> None:
        super().__init__()
        self.needed, self.threshold = needed, threshold

    def forward(self, means: Tensor) -> Tensor:
        weakest = means[:, self.needed].amin(1) - self.threshold
        return torch.stack([torch.zeros_like(weakest), weakest], 1)


def constant_maps(means: Tensor) -> Tensor:
    """(B, U, 2, 2) activations for :func:`pooled` with the given spatial means (B, U)."""
    return means.double()[..., None, None].expand(*means.shape, 2, 2).contiguous()


def _spread(network: nn.Module, seed: int) -> nn.Module:
    """Random weights large enough, and no biases, so that inputs are told apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            scale = (2 / parameter[0].numel()) ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        elif name.endswith("bias"):
            parameter.data.zero_()
    return network


class _ConvNet(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = classifier

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.features(4 * (inputs - 0.5)))


def conv_gap(activation: Activation | None = None) -> Classifier:
    """Convolutions, global average pooling, one linear layer: 12 units that add up, on a 4x4 grid."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    network = _spread(_ConvNet(head), 7)
    return Classifier(network, layer="features", input_size=(SIZE, SIZE), activation=activation)


def conv_mlp() -> Classifier:
    """Convolutions and two linear layers: 12 units that interact, on a 4x4 grid."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(inplace=True), nn.Linear(20, 5))
    return Classifier(_spread(_ConvNet(head), 8), layer="features", input_size=(SIZE, SIZE))


def vit() -> Classifier:
    """A vision transformer with a class token: 16 patch tokens that interact, on a 4x4 grid."""
    network = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=5, weight_init="skip"
    )
    return Classifier(_spread(network, 7), input_size=(SIZE, SIZE), mean=[0.5] * 3, std=[0.25] * 3)


CLASSIFIERS: dict[str, Callable[[], Classifier]] = {"conv_gap": conv_gap, "conv_mlp": conv_mlp, "vit": vit}


def inputs(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """(count, 3, size, size) random blobs in [0, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size, mode="bilinear")


def batch(classifier: Classifier, count: int, forwards: int = 64) -> Batch:
    """``count`` inputs with their predicted classes as targets."""
    pixels = inputs(count, classifier.input_size[0])
    with torch.inference_mode():
        activations = classifier.activations(pixels)
        targets = classifier.head(activations).argmax(1)
    return Batch(pixels, targets, torch.arange(count) + 17, activations, forwards)


def batch_of(classifier: Classifier, activations: Tensor, forwards: int = 64) -> Batch:
    """A batch of made-up activations with the classes predicted from them; its inputs are black."""
    targets = classifier.head(activations).argmax(1)
    black = torch.zeros(len(activations), 3, *classifier.input_size)
    return Batch(black, targets, torch.arange(len(activations)), activations, forwards)
