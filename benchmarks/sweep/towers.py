"""Image towers of open_clip as classifiers, for models whose text tower or tokenizer lies on a hub."""

from __future__ import annotations

import open_clip
import torch
from open_clip.model import _build_vision_tower
from torch import nn

from explainers.models.clip import Clip

CLASSES = 12


def tower(name: str) -> nn.Module:
    """The image tower of the open_clip model ``name`` with random weights, and random class embeddings."""
    settings = open_clip.get_model_config(name)
    width = settings["embed_dim"]
    visual = _build_vision_tower(width, settings["vision_cfg"], settings.get("quick_gelu", False)).eval()
    visual.output_tokens = False
    classes = nn.functional.normalize(torch.randn(CLASSES, width), dim=1)
    return Clip(visual, classes, logit_scale=100.0, text_fingerprint=bytes(32))
