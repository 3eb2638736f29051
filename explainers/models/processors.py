"""Image processors of Hugging Face with steps of their own, and the standard ones that do the same.

Many classes of the library have a version of a step that differs only for maps of labels, or in a size that
can be stated. Whether it does is tried: both processors prepare the same seeded noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

_SIZES = ((67, 301), (301, 67), (160, 160), (401, 530))  # pixels; made larger and smaller, in each axis
_SETTINGS = (
    "do_resize",
    "size",
    "do_center_crop",
    "crop_size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def standard_form(processor: Any) -> Any | None:
    """A standard image processor that prepares images as ``processor`` does; None if none was found."""
    from transformers import CLIPImageProcessor

    settings = {name: getattr(processor, name, None) for name in _SETTINGS}
    settings |= {name: bool(settings[name]) for name in _SETTINGS if name.startswith("do_")}
    for changes in _variants(processor, settings):
        try:
            standard = CLIPImageProcessor(**settings | changes)
            if _same(processor, standard):
                return standard
        except Exception:  # settings that one of the two does not take; the library raises what it likes
            continue
    return None


def _variants(processor: Any, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ways to say with standard settings what a class may do by rules of its own."""
    yield {}
    size = dict(settings["size"] or {})
    side = size.get("shortest_edge")
    if side is not None:
        yield {"size": {"shortest_edge": int(256 / 224 * side)}}  # LeViT
        crop_pct = getattr(processor, "crop_pct", None)
        if crop_pct:
            yield {"size": {"shortest_edge": int(side / crop_pct)}}  # PoolFormer
    if settings["image_std"] is not None:
        yield {
            "image_std": [float(value) ** 2 for value in settings["image_std"]]
        }  # EfficientNet divides twice


def _same(processor: Any, standard: Any) -> bool:
    generator = np.random.default_rng(0)
    for height, width in _SIZES:
        noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        one, other = (each(noise, return_tensors="pt").pixel_values for each in (processor, standard))
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
            return False
    return True
