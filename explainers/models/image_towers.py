"""Load the image tower of an open_clip model alone: without its text tower, and without a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from explainers.models.checkpoint_sets import MisfitError
from explainers.models.checkpoints import load_or_convert
from explainers.models.model_spec import LOCAL_DIR, ModelSpec, is_file

# Smallest towers in place of the model's own, which may need files from a hub.
_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 8}
_DECODER = {"width": 8, "heads": 1, "layers": 1, "context_length": 8}
# Beginnings of names of tensors in a file that belong to the text tower, or to CoCa's decoder.
_OF_TEXT = (
    "text.",
    "text_decoder.",
    "text_encoder.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "attn_mask",
    "cls_emb",
)


class ImageTower(nn.Module):
    """The parts of an open_clip model that images need, under the names that they have in the model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual
        self.logit_scale = model.logit_scale
        self.logit_bias = model.logit_bias


def open_clip_tower(spec: ModelSpec, quick_gelu: bool, device: str | torch.device) -> ImageTower:
    """The image tower of an open_clip model on ``device``, with its weights if the job names some.

    Parameters
    ----------
    spec
        The ``[model]`` table.
    quick_gelu
        Whether the weights were trained with another activation than the architecture has.
    device
        Where the tower is put.

    Raises
    ------
    MisfitError, ValueError
        In one line: the file of weights cannot be read, or does not fit.
    Exception
        Of any kind, from open_clip: the model cannot be made, or its weights not downloaded.
    """
    import open_clip

    name, weights = spec.name or "", spec.weights or ""
    config = {} if ":" in name else open_clip.get_model_config(name) or {}
    coca = {"multimodal_cfg": _DECODER} if "multimodal_cfg" in config else {}
    model = open_clip.create_model(
        name,
        load_weights=False,
        pretrained_text=False,
        force_quick_gelu=quick_gelu,
        device=device,
        text_cfg=_TEXT,
        **coca,
    ).eval()
    tower = ImageTower(model)
    if weights == "none":
        return tower
    file = Path(weights) if is_file(weights) else _published(name, weights)
    load_or_convert(tower, file, lambda: _convert(tower, model, file), spec.weights_key, _OF_TEXT)
    return tower


def _published(name: str, tag: str) -> Path:
    """The file of published weights, or of a folder's or a repository's own."""
    from open_clip import factory
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg

    if name.startswith(LOCAL_DIR):
        folder = name.removeprefix(LOCAL_DIR)
        found = factory._find_checkpoint_in_dir(Path(folder))
        if found is None:
            raise ValueError(f"model.weights: there are no weights in {folder}")
        return Path(found)
    if ":" in name:
        return Path(download_pretrained_from_hf(name.partition(":")[2]))
    return Path(download_pretrained(get_pretrained_cfg(name, tag)))


def _convert(tower: ImageTower, model: Any, file: Path) -> None:
    """Load a file that others wrote, or that has positions for another size, as the library converts it.

    Raises
    ------
    ValueError
        In one line, if the file lacks tensors of the image tower.
    RuntimeError
        If tensors have other shapes.
    """
    from open_clip import convert, factory

    state = convert.convert_state_dict(model, factory.load_state_dict(str(file), weights_only=True))
    factory.resize_pos_embed(state, model)
    own = tower.state_dict()
    state = {
        key: value.reshape(own[key].shape) if value.numel() == 1 else value
        for key, value in state.items()
        if key in own
    }
    if missing := [key for key in own if key not in state]:
        raise MisfitError(
            f"model.weights: {file} lacks {len(missing)} tensors of the image tower, such as {missing[0]}"
        )
    tower.load_state_dict(state)
