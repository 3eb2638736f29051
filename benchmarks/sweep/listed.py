"""The models of a sweep, each with the ``[model]`` table of a job that names no layer."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweep.families import CLASSES, FAMILIES

SOURCES = ("torchvision", "timm", "open_clip", "huggingface")
LARGEST = 60_000_000  # parameters of a timm model that is swept on request
_CLASSES = tuple(f"thing {index}" for index in range(CLASSES))
_SMALL = 224  # side in pixels that a network gets in a sweep with small inputs, if its own is larger
_TV_FIXED = ("vit_", "maxvit")  # these take inputs of one size alone

# One or two of each kind of image tower, the small ones.
TOWERS = (
    "RN50",
    "RN50-quickgelu",
    "ViT-S-32",
    "ViT-M-32-alt",
    "ViT-B-32-quickgelu",
    "ViT-B-16-plus-240",
    "coca_ViT-B-32",
    "ViT-B-16-SigLIP",
    "ViT-B-32-SigLIP2-256",
    "convnext_tiny",
    "convnext_base",
    "EVA02-B-16",
    "MobileCLIP-S1",
    "MobileCLIP-B",
    "MobileCLIP2-S0",
    "MobileCLIP2-S3",
    "PE-Core-T-16-384",
    "ViTamin-S",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "nllb-clip-base",
    "ViT-L-14-CLIPA",
)


@dataclass(frozen=True)
class Entry:
    """One model of the sweep.

    Attributes
    ----------
    source, name
        Where it comes from and what it is called; both are columns of the row.
    family
        The group that it stands for: a module of timm, a model type of Hugging Face.
    table
        The ``[model]`` table of the job.
    configuration
        For Hugging Face alone: the model type, the network's class where the type has several, the side of
        the inputs and the values of the configuration, of which a folder is made.
    listed
        Whether the page has a line for it; models that are swept on request are only counted there.
    """

    source: str
    name: str
    family: str
    table: dict[str, Any] = field(default_factory=dict)
    configuration: tuple[str, str | None, int, dict[str, Any]] | None = None
    listed: bool = True


def entries(sources: Iterable[str], small: bool, all_timm: bool, parameters: Path) -> Iterator[Entry]:
    """Every model of the sweep.

    Parameters
    ----------
    sources
        Those of ``SOURCES`` that are swept.
    small
        Whether networks that take inputs of any size get small ones.
    all_timm
        Whether all timm models below 60 million parameters are swept, too.
    parameters
        A file that keeps how many parameters each timm model has; it is written if it is not there, and again
        for another version of timm.
    """
    if "torchvision" in sources:
        yield from _torchvision(small)
    if "timm" in sources:
        yield from _timm(small, all_timm, _counted(parameters))
    if "open_clip" in sources:
        yield from _open_clip()
    if "huggingface" in sources:
        for name, configuration in FAMILIES.items():
            yield Entry("huggingface", name, configuration[0], configuration=configuration)


def _table(source: str, name: str, side: int | None = None) -> dict[str, Any]:
    size = {} if side is None else {"resize": side, "crop": side}
    return {"source": source, "name": name, "weights": "none", **size}


def _torchvision(small: bool) -> Iterator[Entry]:
    from torchvision import models

    for name in models.list_models(module=models):
        fixed = name.startswith(_TV_FIXED)
        side = _SMALL if small and not fixed else None
        family = models.get_model_builder(name).__module__.rpartition(".")[2]
        yield Entry("torchvision", name, family, _table("torchvision", name, side))


def _counted(file: Path) -> dict[str, list[tuple[str, int]]]:
    """The names and the numbers of parameters of timm's models, by module, smallest first."""
    import timm

    first = ["timm", version("timm")]
    if not file.exists() or _lines(file)[0] != first:
        found = ((module, name) for module in timm.list_modules() for name in timm.list_models(module=module))
        lines = [[module, name, str(_parameters(name))] for module, name in found]
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([first, *lines])
    counts: dict[str, list[tuple[str, int]]] = {}
    for module, name, count in _lines(file)[1:]:
        counts.setdefault(module, []).append((name, int(count)))
    return {module: sorted(models, key=lambda each: each[1]) for module, models in counts.items()}


def _lines(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def _parameters(name: str) -> int:
    """How many parameters a timm model has; the meta device gives them no memory."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(each.numel() for each in timm.create_model(name).parameters())


def _timm(small: bool, all_timm: bool, counts: dict[str, list[tuple[str, int]]]) -> Iterator[Entry]:
    smallest = [(module, *models[0]) for module, models in counts.items()]
    for module, name, _ in sorted(smallest, key=lambda each: each[2]):
        yield Entry("timm", name, module, _table("timm", name, _timm_side(name) if small else None))
    for module, models in counts.items() if all_timm else ():
        for name, count in models[1:]:
            if count < LARGEST:
                side = _timm_side(name) if small else None
                yield Entry("timm", name, module, _table("timm", name, side), listed=False)


def _timm_side(name: str) -> int | None:
    """A small side for a timm model; None for its own size, where it takes no other or states none."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    if settings is None or settings.fixed_input_size or max(settings.input_size[1:]) <= _SMALL:
        return None
    least = max(settings.min_input_size[1:]) if settings.min_input_size else _SMALL
    return max(least, _SMALL)


def _open_clip() -> Iterator[Entry]:
    import open_clip

    for name in TOWERS:
        settings = open_clip.get_model_config(name)
        vision, text = settings["vision_cfg"], settings["text_cfg"]
        kind = "ResNet" if isinstance(vision.get("layers"), list) else "ViT"
        family = vision.get("timm_model_name", kind)
        table = _table("open_clip", name) | {"classes": _CLASSES}
        if "hf_model_name" in text or "hf_tokenizer_name" in text:
            # The text tower or its tokenizer lies on a hub, so the image tower is given as a callable.
            side = int(vision["image_size"]) if "image_size" in vision else 224
            table = _table(f"{Path(__file__).parent / 'towers.py'}:tower", name, side)
        yield Entry("open_clip", name, family, table)
