"""Build CLIP-like models from Hugging Face: those with an image and a text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explainers.models.clip import Clip, HuggingFaceSiglipVit, HuggingFaceVit
from explainers.models.clip_sources import clip_of_embeddings, clip_of_texts, tokenizer_of
from explainers.models.huggingface import from_pretrained, pretrained_model
from explainers.models.model_spec import ModelSpec

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    folder = Path(name)
    # Without its files the library makes a tokenizer that knows no word, so that all classes would be alike.
    if folder.is_dir() and not any(file for kind in _TOKENIZER_FILES for file in folder.glob(kind)):
        raise FileNotFoundError("the folder has no file of a tokenizer")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def huggingface_clip(spec: ModelSpec, device: str | torch.device, kind: str) -> Clip:
    """A Hugging Face model with two towers on ``device``, as a classifier of the job's classes.

    Parameters
    ----------
    spec
        The ``[model]`` table.
    device
        Where the class embeddings are computed.
    kind
        The class of the model: "CLIPModel" or "SiglipModel".

    Raises
    ------
    ValueError
        In one line that begins with the key: the tokenizer or the weights cannot be found, downloaded or
        loaded, or the weights lack tensors.
    """
    import transformers

    cls = getattr(transformers, kind)
    siglip = kind == "SiglipModel"
    if spec.weights == "none":
        model = cls(from_pretrained(spec, cls.config_class.from_pretrained))
    else:
        model = pretrained_model(spec, cls)
    model = model.to(device).eval()
    visual = HuggingFaceSiglipVit(model) if siglip else HuggingFaceVit(model)
    if spec.class_embeddings is not None:
        config = model.config
        return clip_of_embeddings(
            spec, model, visual, config.vision_config.hidden_size if siglip else config.projection_dim
        )
    tokenizer = tokenizer_of(spec, lambda: _tokenizer(str(spec.name)))
    longest = model.config.text_config.max_position_embeddings

    def encode(prompts: list[str]) -> Tensor:
        tokens = tokenizer(
            prompts,
            # SigLIP was trained on texts of one length, whose padding its text tower attends to.
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(device)
        masks = {} if siglip else {"attention_mask": tokens.attention_mask}
        found = model.text_model(input_ids=tokens.input_ids, **masks).pooler_output
        embeddings: Tensor = found if siglip else model.text_projection(found)
        return embeddings

    return clip_of_texts(spec, model, visual, "vision_model", encode)
