"""Read what a source's own transform or image processor does with an image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from explainers.models.model_spec import Preprocessing, Side
from explainers.models.processors import standard_form

_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
# What an image processor of Hugging Face calls, one after the other. A class that has its own version of one
# of these does something that cannot be read from its settings.
_STEPS = (
    "preprocess",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "process_image",
    "_preprocess",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
    "rescale_and_normalize",
    "_fuse_mean_std_and_rescale_factor",
)


class UnreadableStepsError(ValueError):
    """A source prepares images in a way that Floodlit does not know; the message says how."""


def of_torchvision(steps: Any) -> Preprocessing:
    """The preprocessing of published torchvision weights.

    Raises
    ------
    UnreadableStepsError
        If it is another one than torchvision's preset for classification.
    """
    from torchvision.transforms._presets import ImageClassification

    if type(steps) is not ImageClassification:
        raise UnreadableStepsError(f"transforms images by {type(steps).__name__}")
    return Preprocessing(
        resize=_side(steps.resize_size),
        crop=_side(steps.crop_size),
        interpolation=_filter(steps.interpolation),
        mean=_per_channel("mean", steps.mean),
        std=_per_channel("std", steps.std),
        fit="short" if len(steps.resize_size) == 1 else "squash",
    )


def of_steps(
    steps: Iterable[Any], mean: Sequence[float], std: Sequence[float], channels: int = 3
) -> Preprocessing:
    """The preprocessing that a list of transforms makes, as timm and open_clip write it.

    Raises
    ------
    UnreadableStepsError
        If one of the transforms is unknown, or stands at an unexpected place.
    """
    found: dict[str, Any] = {}
    for step in steps:
        name = type(step).__name__
        if name == "Resize" and not found and step.max_size is None:
            size = _side(step.size if isinstance(step.size, Sequence) else [step.size])
            # Only a number means the short side; a pair says both sides, also if they are equal.
            squashes = isinstance(step.size, Sequence) and len(step.size) == 2
            found |= {"resize": size, "fit": "squash" if squashes else "short"}
            found |= {"interpolation": _filter(step.interpolation)}
        elif name == "ResizeKeepRatio" and not found and step.longest in (0, 1):
            found |= {"resize": _side(step.size), "fit": "contain" if step.longest else "cover"}
            found |= {"interpolation": _filter(step.interpolation)}
        elif name in {"CenterCrop", "CenterCropOrPad"} and "resize" in found and "crop" not in found:
            fill = getattr(step, "fill", 0)
            found |= {
                "crop": _side(step.size),
                "fill": (fill,) * channels if isinstance(fill, int) else tuple(fill),
            }
        elif name not in {"MaybeConvertMode", "MaybeToTensor", "ToTensor", "Normalize"}:
            raise UnreadableStepsError(f"transforms images by {step}")
    if found.get("fit") == "squash":
        found.setdefault("crop", found["resize"])
    found.setdefault("fill", (0,) * channels)
    return Preprocessing(
        mean=_per_channel("mean", mean, channels), std=_per_channel("std", std, channels), **found
    )


def of_processor(processor: Any, mean: Any = None, std: Any = None, channels: int = 3) -> Preprocessing:
    """The preprocessing of an image processor of Hugging Face.

    Parameters
    ----------
    processor
        The image processor.
    mean, std
        The job's own values, used where the processor has none.
    channels
        The channels of the model's inputs.

    Raises
    ------
    UnreadableStepsError
        If its class has steps of its own, or its settings ask for what is not supported.
    """
    kind = type(processor).__name__
    if kind == "TimmWrapperImageProcessor":
        return of_steps(
            processor.val_transforms.transforms, processor.data_config["mean"], processor.data_config["std"]
        )
    warps = kind.removesuffix("Pil") == "ConvNextImageProcessor"
    if not warps and not _is_standard(processor):
        processor = standard_form(processor)
        if processor is None:
            raise UnreadableStepsError(f"has an image processor with steps of its own, {kind}")
    if getattr(processor, "do_pad", None):
        raise UnreadableStepsError("has an image processor that pads images")
    try:
        geometry = _warped(processor) if warps else _resized_and_cropped(processor)
        scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
        shift: tuple[float, ...] = (0.0,) * channels
        spread: tuple[float, ...] = (1.0,) * channels
        if processor.do_normalize:
            own = processor.image_mean, processor.image_std
            shift = _per_channel("mean", mean if own[0] is None else own[0], channels)
            spread = _per_channel("std", std if own[1] is None else own[1], channels)
        if abs(scale - 1) >= 1e-9:  # of pixels in [0, 1] the network sees (scale * pixels - mean) / std
            shift = _per_channel("mean", [value / scale for value in shift], channels)
            spread = _per_channel("std", [value / scale for value in spread], channels)
        return Preprocessing(
            **geometry,
            fill=(0,) * channels,
            interpolation=_filter(processor.resample),
            mean=shift,
            std=spread,
            centre="truncate" if processor.backend == "torchvision" else "floor",
            resampler="torch" if processor.backend == "torchvision" else "pillow",
        )
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UnreadableStepsError(f"has an image processor that cannot be read ({error})") from error


def _is_standard(processor: Any) -> bool:
    from transformers.image_processing_backends import PilBackend, TorchvisionBackend

    backend = TorchvisionBackend if isinstance(processor, TorchvisionBackend) else PilBackend
    return isinstance(processor, backend) and all(
        getattr(type(processor), step, None) is getattr(backend, step, None) for step in _STEPS
    )


def _resized_and_cropped(processor: Any) -> dict[str, Any]:
    """How a standard image processor resizes and crops."""
    found: dict[str, Any] = {}
    if processor.do_resize:
        size = {key: value for key, value in dict(processor.size).items() if value is not None}
        if set(size) == {"shortest_edge"}:
            found = {"resize": size["shortest_edge"], "fit": "short"}
        elif set(size) == {"height", "width"}:
            side = _side([size["height"], size["width"]])
            found = {"resize": side, "crop": side, "fit": "squash"}
        else:
            raise UnreadableStepsError(f"resizes images by {' and '.join(sorted(size))}")
    if processor.do_center_crop:
        found["crop"] = _side([processor.crop_size.height, processor.crop_size.width])
    return found


def _warped(processor: Any) -> dict[str, Any]:
    """How ConvNeXt's image processor resizes: it keeps the proportions only below 384 pixels."""
    if processor.do_center_crop or not processor.do_resize:
        raise UnreadableStepsError("has an image processor of ConvNeXt that does not only resize")
    side = processor.size.shortest_edge
    if side < 384:
        return {"resize": int(side / processor.crop_pct), "crop": side, "fit": "short"}
    return {"resize": side, "crop": side, "fit": "squash"}


def _side(size: Sequence[Any]) -> Side:
    """The side of a square, or (height, width)."""
    height, width = (size[0], size[0]) if len(size) == 1 else size
    return int(height) if height == width else (int(height), int(width))


def _filter(interpolation: Any) -> str:
    """The name of an interpolation, which is Pillow's number or torchvision's word."""
    number = isinstance(interpolation, int)
    name = Image.Resampling(interpolation).name.lower() if number else str(interpolation.value)
    if name not in _FILTERS:
        raise UnreadableStepsError(f"resizes images by {name} interpolation")
    return name


def _per_channel(what: str, values: Any, channels: int = 3) -> tuple[float, ...]:
    """One number per channel."""
    if not isinstance(values, Sequence) or len(values) != channels:
        raise UnreadableStepsError(f"states no {what} of {channels} channels")
    if not all(math.isfinite(value) and (what == "mean" or value > 0) for value in values):
        raise UnreadableStepsError(f"states {values} as {what}")
    return tuple(float(value) for value in values)
