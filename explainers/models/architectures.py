"""A table of published architectures: the default target layer of each, and how its tokens are laid out.

The keys are the classes of networks, so that a network is recognised wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from explainers.models.clip import Clip

T = TypeVar("T")


@dataclass(frozen=True)
class Architecture:
    """What is known about a network from its class. Each function takes the network.

    Attributes
    ----------
    layer
        Gives the name of the default target layer, whose output the classification head pools. For a
        transformer that reads its class token it is the input of the last block, after which patches no
        longer reach that token.
    prefix_tokens
        Gives the number of tokens before the patch tokens; for transformers only.
    """

    layer: Callable[[Any], str]
    prefix_tokens: Callable[[Any], int] | None = None


def _at(layer: str) -> Architecture:
    return Architecture(layer=lambda network: layer)  # noqa: ARG005


def _timm_reads_class_token(network: Any) -> bool:
    return bool(network.global_pool == "token")


def _timm_vit_layer(network: Any) -> str:
    last = f"blocks.{len(network.blocks) - 1}"
    return f"{last}:input" if _timm_reads_class_token(network) else last


_KNOWN = {
    "torchvision.models.resnet.ResNet": _at("layer4"),
    "torchvision.models.vgg.VGG": _at("features"),
    "torchvision.models.mobilenetv2.MobileNetV2": _at("features"),
    "torchvision.models.mobilenetv3.MobileNetV3": _at("features"),
    "torchvision.models.efficientnet.EfficientNet": _at("features"),
    "torchvision.models.densenet.DenseNet": _at("features"),  # behind its functional ReLU
    "torchvision.models.convnext.ConvNeXt": _at("features"),
    "torchvision.models.swin_transformer.SwinTransformer": _at("norm"),
    "torchvision.models.vision_transformer.VisionTransformer": Architecture(
        layer=lambda network: f"encoder.layers.encoder_layer_{len(network.encoder.layers) - 1}:input",
        prefix_tokens=lambda network: 1,  # noqa: ARG005
    ),
    "timm.models.resnet.ResNet": _at("layer4"),
    "timm.models.vision_transformer.VisionTransformer": Architecture(
        layer=_timm_vit_layer,
        prefix_tokens=lambda network: int(network.num_prefix_tokens),
    ),
}


def _open_clip_reads_class_token(network: Any) -> bool:
    return bool(network.visual.pool_type == "tok" and network.visual.attn_pool is None)


def _open_clip_vit_layer(network: Any) -> str:
    last = f"visual.transformer.resblocks.{len(network.visual.transformer.resblocks) - 1}"
    return f"{last}:input" if _open_clip_reads_class_token(network) else last


# The keys are the classes of a Clip's image tower.
_KNOWN_TOWERS = {
    "open_clip.modified_resnet.ModifiedResNet": _at("visual.layer4"),
    "open_clip.transformer.VisionTransformer": Architecture(
        layer=_open_clip_vit_layer,
        prefix_tokens=lambda network: 1,  # noqa: ARG005
    ),
    "explainers.models.clip.HuggingFaceVit": Architecture(
        layer=lambda network: f"visual.layers.{len(network.visual.layers) - 1}:input",
        prefix_tokens=lambda network: 1,  # noqa: ARG005
    ),
    "explainers.models.clip.HuggingFaceSiglipVit": Architecture(
        layer=lambda network: f"visual.layers.{len(network.visual.layers) - 1}",
        prefix_tokens=lambda network: 0,  # noqa: ARG005
    ),
}


def architecture_of(network: nn.Module) -> Architecture | None:
    """What is known about a network's class, or else about its nearest base class; None if nothing.

    For a :class:`Clip` the class of its image tower counts.
    """
    if isinstance(network, Clip):
        return by_class(_KNOWN_TOWERS, network.visual)
    return by_class(_KNOWN, network)


def prefix_tokens_of(network: nn.Module) -> int | None:
    """Number of tokens before the patch tokens of a known transformer; None for any other network."""
    known = architecture_of(network)
    return known.prefix_tokens(network) if known and known.prefix_tokens else None


def by_class(known: Mapping[str, T], network: nn.Module) -> T | None:
    """The entry of a table for the network's class, or else for its nearest base class; None without one.

    The keys of the table are ``module.name`` of classes, so that no library is imported to look one up.
    """
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(network).__mro__]
    return next((known[name] for name in names if name in known), None)
