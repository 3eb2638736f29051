"""The ``[model]`` table of a job, and the preprocessing that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_FILE_SUFFIXES = frozenset([".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"])
DEFAULT_TEMPLATE = "a photo of a {}."
DEFAULT_MAX_LENGTH = 512  # tokens
LOCAL_DIR = "local-dir:"  # open_clip's word for a folder
_Positive = Annotated[float, Field(gt=0)]


class ModelSpec(BaseModel):
    """The model of a job."""

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
        description="A file (.safetensors, .pth, ...), a name the source knows (torchvision: DEFAULT, "
        "IMAGENET1K_V1, ...; timm: pretrained, or a tag; open_clip: a tag; a folder or a repository: "
        "pretrained), or none for random weights.",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="Names of the classes, of a CLIP-like model (open_clip, huggingface) and no other."
    )
    templates: tuple[str, ...] | None = Field(
        None,
        description="Prompts of every class of a CLIP-like model, with {} for its name; their text "
        f"embeddings are averaged. By default {DEFAULT_TEMPLATE!r}.",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Tokens that a text is cut to, special ones included. By default what network and "
        f"tokenizer take, at most {DEFAULT_MAX_LENGTH}.",
    )
    num_classes: int | None = Field(None, ge=1, description="Number of classes, where not the source's own.")
    layer: str | None = Field(
        None, description="Target layer, of image models; known for published architectures."
    )
    resize: int | None = Field(None, ge=1, description="Length in pixels the short side is resized to.")
    crop: int | None = Field(None, ge=1, description="Side in pixels of the square cut from the centre.")
    mean: tuple[float, float, float] | None = Field(
        None, description="Mean per channel, of pixels in [0, 1]."
    )
    std: tuple[_Positive, _Positive, _Positive] | None = Field(
        None, description="Standard deviation per channel, of pixels in [0, 1]"
    )

    def relative_to(self, folder: Path) -> ModelSpec:
        """The same model with its files and folders looked up from ``folder``.

        Those are weights, the callable's file, and the folder that a name stands for; of a Hugging Face name,
        which may be a repository's, only if there is such a folder.
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
        Pixels the short side is resized to, the proportions kept; None: not resized.
    crop
        Side in pixels of the square cut from the centre; None: not cropped.
    interpolation
        Of the resizing: bilinear, bicubic, ...
    mean, std
        Per channel, of pixels in [0, 1].
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def is_file(weights: str) -> bool:
    """Whether ``weights`` names a file, by its suffix or a slash, and not published weights."""
    return Path(weights).suffix in _FILE_SUFFIXES or "/" in weights
