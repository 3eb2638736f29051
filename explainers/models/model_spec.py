"""The ``[model]`` table of a job, and the preprocessing that follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_FILE_SUFFIXES = frozenset([".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pt2"])
Program = Literal["torchscript", "exported"]
# Networks that were saved together with their code, by the source that reads them. Their weights are a file,
# whatever its name.
PROGRAMS: dict[str, str] = {
    "torchscript": "TorchScript module",
    "exported": "program of torch.export",
}
DEFAULT_TEMPLATE = "a photo of a {}."
DEFAULT_MAX_LENGTH = 512  # tokens
LOCAL_DIR = "local-dir:"  # open_clip's prefix for a folder
MOST_CHANNELS = 1024
LARGEST_SIDE = 8192  # pixels; one image of this size is 800 MB as the network's input
Side = int | tuple[int, int]  # the side of a square, or (height, width), in pixels
Fit = Literal["short", "squash", "contain", "cover"]
_Length = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Mean = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]  # a smaller one gives no numbers
Output = Literal["logits", "probabilities", "log_probabilities"]
Activation = Literal["softmax", "sigmoid"]
Part = str | int  # a part of what a network returns: a name, or an index


def _as_side(value: Any) -> Any:
    """A side as the job gives it, with a list as a tuple; one complaint in place of one for each type."""
    sides = value if isinstance(value, list | tuple) else [value]
    whole = all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides)
    if value is not None and (not whole or (sides is value and len(sides) != 2)):
        given = [side for side in sides if isinstance(side, int | float)]  # a text may be a password
        told = f", not {', '.join(map(str, given))}" if given else ""
        raise ValueError(f"must be [height, width] or a whole number from 1 to {LARGEST_SIDE}{told}")
    return tuple(value) if isinstance(value, list) else value


_Side = Annotated[_Length | tuple[_Length, _Length], BeforeValidator(_as_side)]


def as_layers(value: Any) -> Any:
    """Target layers as they are given: None, a name, or a tuple of several; a list of one is that name.

    Raises
    ------
    ValueError
        In one line: it is none of these, or a layer is named twice.
    """
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    listed = isinstance(names, list | tuple) and len(names) > 0
    if not listed or not all(isinstance(name, str) and name for name in names):
        raise ValueError("must be the name of a layer, or a list of names")
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if twice:
        raise ValueError(f"names {twice[0]!r} twice; name each layer once")
    return names[0] if len(names) == 1 else tuple(names)


class ModelSpec(BaseModel):
    """The model that a job explains: the ``[model]`` table."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    source: str = Field(
        min_length=1,
        description="torchvision, timm, open_clip, huggingface, torchscript or exported (a file that "
        "torch.jit.save or torch.export.save wrote), or a callable that returns the network: "
        "package.module:callable or path/to/file.py:callable",
    )
    name: str | None = Field(
        None,
        min_length=1,
        description="Name of the network at its source (open_clip: also local-dir:FOLDER or "
        "hf-hub:REPOSITORY; huggingface: a repository or a folder); a callable gets it as its only argument.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="A file (.safetensors, .pth, ...), a name that the source knows (torchvision: DEFAULT, "
        "IMAGENET1K_V1, ...; timm: pretrained, or a tag; open_clip: a tag; a folder or a repository: "
        "pretrained), or none for random weights. torchscript, exported: the file of the program.",
    )
    weights_key: str | None = Field(
        None,
        description="Which weights of a file are taken, where it holds several that differ: the keys of its "
        "tables, and what the names begin with, joined by dots, such as state_dict_ema.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        strict=False,  # TOML and JSON have lists
        max_length=100_000,
        description="Names of the classes; for CLIP-like models (open_clip, huggingface) only. Image "
        "classifiers have classes of their own.",
    )
    class_names: str | None = Field(
        None,
        min_length=1,
        description="File that names the model's classes, one line per class in the order of the model's "
        "outputs: a synset (n01440764), names with commas between them, or both. By default the names are "
        "the source's: torchvision's and timm's ImageNet names, Hugging Face's id2label, or `classes`.",
    )
    templates: tuple[str, ...] | None = Field(
        None,
        strict=False,
        max_length=1000,
        description="Prompts for every class of a CLIP-like model, in which {} stands for the name of the "
        f"class; their text embeddings are averaged. By default {DEFAULT_TEMPLATE!r}.",
    )
    class_embeddings: str | None = Field(
        None,
        min_length=1,
        description="File with one embedding per class of a CLIP-like model, in the order of `classes`: an "
        "array (classes, d) in a .npy, .pt or .safetensors file. No text and no tokenizer is needed then.",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Number of tokens that a text is cut to, including special tokens. By default as many as "
        f"the network and the tokenizer take, at most {DEFAULT_MAX_LENGTH}.",
    )
    num_classes: int | None = Field(
        None, ge=1, le=1_000_000, description="Number of classes, if it differs from the source's own."
    )
    layer: Annotated[str | tuple[str, ...] | None, BeforeValidator(as_layers)] = Field(
        None,
        description="Target layer of an image model: a module's name, with :input behind it for what the "
        "module takes. By default it is found: the last one on a grid whose every cell reaches the logits. "
        "Of several layers, in a list, the mean of their maps is taken.",
    )
    resize: _Side | None = Field(
        None,
        description="Size in pixels that an image is resized to, in place of the source's own way: the "
        "length of the short side, or [height, width]; `fit` says how.",
    )
    fit: Fit | None = Field(
        None,
        description="How an image gets the size `resize`. short: its short side gets that length (default "
        "for a number). squash: each side gets its length, so that the proportions change (default for "
        "[height, width]). contain: it becomes as large as fits, with black around it. cover: it becomes as "
        "small as still covers the size. A number is a square for all but short.",
    )
    crop: _Side | None = Field(
        None,
        description="Size in pixels of what is cut from the centre of an image: the side of a square, or "
        "[height, width]. By default `resize`, if the job gives it and `fit` is not short, else the source's "
        "own.",
    )
    channels: int | None = Field(
        None,
        ge=1,
        le=MOST_CHANNELS,
        description="Number of channels of an image model's inputs: the bands of an image. By default that "
        "of `mean` or `std`, else the source's own, which is 3 for a callable.",
    )
    mean: tuple[_Mean, ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        max_length=MOST_CHANNELS,
        description="Mean per channel, for pixels in [0, 1].",
    )
    std: tuple[_Deviation, ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        max_length=MOST_CHANNELS,
        description="Standard deviation per channel, for pixels in [0, 1].",
    )

    output: Output | None = Field(
        None,
        description="What the network returns, if it is not logits: probabilities (it ends in a softmax; "
        "they are read as their logarithms), or log_probabilities (it ends in a log-softmax). A sigmoid's "
        "are read as the logits that it was given, for a single output and if `activation` says sigmoid. "
        "Numbers that all lie within 0 and 1 are taken for logits only if this says logits.",
    )
    activation: Activation | None = Field(
        None,
        description="How logits become probabilities. softmax, the default: exactly one class is right, and "
        "probabilities add up to 1. sigmoid: each class is right or not for itself (multi-label). A network "
        "with a single output z has two classes with the logits (0, z), whose softmax is the sigmoid of z, "
        "and needs no key.",
    )

    returns: Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None,
        description="Which part of what the network returns is meant, where it returns several: a name in a "
        "dictionary or a ModelOutput, or an index in a tuple. By default it is the part named logits, else "
        "the only one of shape (inputs, classes).",
    )

    @model_validator(mode="after")
    def _as_many_values_as_channels(self) -> ModelSpec:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.given_channels:
                other = "channels" if self.channels is not None else "mean"
                raise ValueError(
                    f"{key} has {len(values)} numbers where {other} says {self.given_channels}; give one "
                    "number per channel"
                )
        return self

    @property
    def given_channels(self) -> int | None:
        """How many channels the job says that inputs have; None if it leaves that to the source."""
        if self.channels is not None:
            return self.channels
        values = self.std if self.mean is None else self.mean
        return None if values is None else len(values)

    def relative_to(self, folder: Path) -> ModelSpec:
        """The same model, with relative paths to its files and folders taken from ``folder``.

        These paths are the weights, the names and the embeddings of classes, the callable's file, and a name
        that stands for a folder. A Hugging Face name may also be a repository's, so it counts as a path only
        if there is such a folder.
        """
        changes = {}
        path, _, name = self.source.rpartition(":")
        if path.endswith(".py"):
            changes["source"] = f"{folder / path}:{name}"
        if self.name is not None and self.source == "huggingface" and (folder / self.name).is_dir():
            changes["name"] = str(folder / self.name)
        if self.name is not None and self.source == "open_clip" and self.name.startswith(LOCAL_DIR):
            changes["name"] = f"{LOCAL_DIR}{folder / self.name.removeprefix(LOCAL_DIR)}"
        for key in ("class_names", "class_embeddings"):
            if getattr(self, key) is not None:
                changes[key] = str(folder / getattr(self, key))
        if self.weights is not None and (is_file(self.weights) or self.source in PROGRAMS):
            changes["weights"] = str(folder / self.weights)
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the network's input.

    Attributes
    ----------
    resize
        Size in pixels that an image is resized to; ``fit`` says how. None for no resizing.
    crop
        Size in pixels of what is cut from the centre; None for no crop.
    interpolation
        How pixels are interpolated when the image is resized: bilinear, bicubic, ...
    mean, std
        Per channel, for pixels in [0, 1]; the network sees (pixels - mean) / std.
    fit
        "short": ``resize`` is the length of the short side. "squash": it is the size, and the proportions
        change. "cover", "contain": the image just covers it, or just fits into it.
    fill
        Colour of what is around an image that is smaller than the crop, per channel in 0 to 255.
    centre, resampler
        Details in which libraries differ: how the place of the crop is rounded, and which library resizes.
        The values are those of ``storage.datasets.geometry.prepare_image``.
    """

    resize: Side | None = None
    crop: Side | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fit: Fit = "short"
    fill: tuple[int, ...] = (0, 0, 0)
    centre: Literal["round", "truncate", "floor"] = "round"
    resampler: Literal["pillow", "torch"] = "pillow"

    @property
    def channels(self) -> int:
        """Number of channels of the network's input."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the network's input; None where it depends on the image."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    @property
    def geometry(self) -> dict[str, Any]:
        """All but ``mean`` and ``std``: the keyword arguments of ``prepare_image``."""
        return {key: value for key, value in asdict(self).items() if key not in {"mean", "std"}}


def is_file(weights: str) -> bool:
    """Whether ``weights`` names a file rather than published weights: it has a file's suffix or a slash."""
    return Path(weights).suffix in _FILE_SUFFIXES or "/" in weights
