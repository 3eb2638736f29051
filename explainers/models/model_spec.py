"""The ``[model]`` table of a job, and the preprocessing that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_FILE_SUFFIXES = frozenset([".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"])
DEFAULT_TEMPLATE = "a photo of a {}."
DEFAULT_MAX_LENGTH = 512  # tokens
LOCAL_DIR = "local-dir:"  # open_clip's prefix for a folder
_Positive = Annotated[float, Field(gt=0)]


class ModelSpec(BaseModel):
    """The model that a job explains: the ``[model]`` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="torchvision, timm, open_clip, huggingface, or a callable that returns the network: "
        "package.module:callable or path/to/file.py:callable"
    )
    name: str | None = Field(
        None,
        description="Name of the network at its source (open_clip: also local-dir:FOLDER or "
        "hf-hub:REPOSITORY; huggingface: a repository or a folder); a callable gets it as its only argument.",
    )
    weights: str | None = Field(
        None,
        description="A file (.safetensors, .pth, ...), a name that the source knows (torchvision: DEFAULT, "
        "IMAGENET1K_V1, ...; timm: pretrained, or a tag; open_clip: a tag; a folder or a repository: "
        "pretrained), or none for random weights.",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="Names of the classes; for CLIP-like models (open_clip, huggingface) only."
    )
    templates: tuple[str, ...] | None = Field(
        None,
        description="Prompts for every class of a CLIP-like model, in which {} stands for the name of the "
        f"class; their text embeddings are averaged. By default {DEFAULT_TEMPLATE!r}.",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Number of tokens that a text is cut to, including special tokens. By default as many as "
        f"the network and the tokenizer take, at most {DEFAULT_MAX_LENGTH}.",
    )
    num_classes: int | None = Field(
        None, ge=1, description="Number of classes, if it differs from the source's own."
    )
    layer: str | None = Field(
        None, description="Target layer of an image model. The default is known for published architectures."
    )
    resize: int | None = Field(
        None, ge=1, description="Length in pixels that the short side of an image is resized to."
    )
    crop: int | None = Field(
        None, ge=1, description="Side in pixels of the square that is cut from the centre of an image."
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="Mean per channel, for pixels in [0, 1]."
    )
    std: tuple[_Positive, _Positive, _Positive] | None = Field(
        None, description="Standard deviation per channel, for pixels in [0, 1]."
    )

    def relative_to(self, folder: Path) -> ModelSpec:
        """The same model, with relative paths to its files and folders taken from ``folder``.

        These paths are the weights, the callable's file, and a name that stands for a folder. A Hugging Face
        name may also be a repository's, so it counts as a path only if there is such a folder.
        """
        changes = {}
        path, _, name = self.source.rpartition(":")
        if path.endswith(".py"):
            changes["source"] = f"{folder / path}:{name}"
        if self.name is not None and self.source == "huggingface" and (folder / self.name).is_dir():
            changes["name"] = str(folder / self.name)
        if self.name is not None and self.source == "open_clip" and self.name.startswith(LOCAL_DIR):
            changes["name"] = f"{LOCAL_DIR}{folder / self.name.removeprefix(LOCAL_DIR)}"
        if self.weights is not None and is_file(self.weights):
            changes["weights"] = str(folder / self.weights)
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the network's input.

    Attributes
    ----------
    resize
        Length in pixels that the short side is resized to, with the proportions kept; None for no resizing.
    crop
        Side in pixels of the square that is cut from the centre; None for no crop.
    interpolation
        How pixels are interpolated when the image is resized: bilinear, bicubic, ...
    mean, std
        Per channel, for pixels in [0, 1]; the network sees (pixels - mean) / std.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def is_file(weights: str) -> bool:
    """Whether ``weights`` names a file rather than published weights: it has a file's suffix or a slash."""
    return Path(weights).suffix in _FILE_SUFFIXES or "/" in weights
