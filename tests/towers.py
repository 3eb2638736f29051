"""Image towers that open_clip takes from timm, small and with random weights, as CLIP classifiers."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import timm
import torch
from open_clip.timm_model import TimmModel
from torch import nn

from explainers.models.clip import Clip
from families import stirred

SMALL = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 2}
# What open_clip's own configurations name: the network of timm, its pool, and what makes it small.
TOWERS: dict[str, tuple[str, str, dict[str, object]]] = {
    "EVA01": ("eva_giant_patch14_clip_224", "token", SMALL | {"patch_size": 16}),
    "EVA02": ("eva02_base_patch16_clip_224", "token", SMALL),
    "MobileCLIP-B": ("vit_base_mci_224", "token", {"img_size": 64, "depth": 2}),  # its stem has one width
    "MobileCLIP-S1": ("fastvit_mci1", "avg", {"layers": (1, 1, 1, 2)}),
}


def tower(family: str) -> Clip:
    """A CLIP of the family, with 5 classes."""
    name, pool, options = TOWERS[family]

    def build() -> nn.Module:
        smaller = partial(timm.create_model, **options)
        with patch("open_clip.timm_model.timm.create_model", smaller):
            visual = TimmModel(name, 7, image_size=64, pool=pool, proj=None)
        classes = nn.functional.normalize(torch.randn(5, 7), dim=1)
        return Clip(visual, classes, logit_scale=10.0, text_fingerprint=bytes(32))

    network: Clip = stirred(build)
    return network
