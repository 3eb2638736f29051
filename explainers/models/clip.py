"""CLIP-like models as classifiers: an image tower, and one embedding per class, made from its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.numerics.batching import in_chunks

_PROMPTS_PER_STEP = 256


class Clip(nn.Module):
    """Zero-shot classifier of a CLIP-like model (Radford et al., ICML 2021, section 3.1.2).

    The logit of a class is ``logit_scale`` times the cosine similarity of the image's embedding and the
    class's, plus ``logit_bias``, so that the softmax over classes is the model's own probability. A bias
    (SigLIP has one) is the same for every class and does not change the softmax.

    The class embeddings are not in the state dict, because their last bits depend on the machine that
    computed them. The state dict holds a fingerprint of what they were computed from instead.

    Parameters
    ----------
    visual
        The image tower: from normalised pixels (B, 3, H, W) to embeddings (B, d), of any length.
    class_embeddings
        (C, d), each of length 1.
    logit_scale
        The factor of the cosine similarities: the exponential of the parameter that the model learned.
    logit_bias
        The number that is added to every logit.
    text_fingerprint
        32 bytes that differ where text tower, prompts or scales differ.
    """

    class_embeddings: Tensor

    def __init__(
        self,
        visual: nn.Module,
        class_embeddings: Tensor,
        *,
        logit_scale: float,
        logit_bias: float = 0.0,
        text_fingerprint: bytes,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.similarity = _Similarity()
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.register_buffer("class_embeddings", class_embeddings, persistent=False)
        self.register_buffer("text_fingerprint", torch.tensor(list(text_fingerprint), dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits (B, C) of normalised pixels (B, 3, H, W)."""
        return (
            self.logit_scale * self.similarity(self.visual(inputs), self.class_embeddings) + self.logit_bias
        )


class _Similarity(nn.Module):
    """Cosine similarities (B, C) of embeddings (B, d) of any length and class embeddings (C, d) of length 1.

    They are not computed in lower precision, since they are multiplied by a scale of about 100, which would
    multiply the rounding as well. This is a module of its own so that the same holds after the network is
    cut: tracing calls it as it is.
    """

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.normalize(embeddings.to(classes.dtype), dim=-1) @ classes.T


class HuggingFaceVit(nn.Module):
    """The image tower of a Hugging Face ``CLIPModel``: from (B, 3, H, W) to embeddings (B, d).

    It shares the model's modules and connects them as the model's own forward does. That forward itself
    cannot be used, because it is wrapped in a way that cannot be traced.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.vision_model
        self.embeddings = tower.embeddings
        self.pre_layrnorm = tower.pre_layrnorm
        self.layers = tower.encoder.layers
        self.post_layernorm = tower.post_layernorm
        self.projection = model.visual_projection

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute embeddings (B, d) of normalised pixels (B, 3, H, W)."""
        tokens = self.pre_layrnorm(self.embeddings(inputs))
        for layer in self.layers:
            tokens = layer(tokens, None)  # no attention mask
        embeddings: Tensor = self.projection(self.post_layernorm(tokens[:, 0]))
        return embeddings


class HuggingFaceSiglipVit(nn.Module):
    """The image tower of a Hugging Face ``SiglipModel``: see :class:`HuggingFaceVit`.

    It has no class token. Attention pools the patches to the embedding (B, d).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.vision_model
        self.embeddings = tower.embeddings
        self.layers = tower.encoder.layers
        self.post_layernorm = tower.post_layernorm
        self.head = tower.head

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute embeddings (B, d) of normalised pixels (B, 3, H, W)."""
        tokens = self.embeddings(inputs)
        for layer in self.layers:
            tokens = layer(tokens, None)  # no attention mask
        embeddings: Tensor = self.head(self.post_layernorm(tokens))
        return embeddings


def embed_classes(
    encode: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Embed every class as the mean direction of its prompts (section 3.1.4).

    Parameters
    ----------
    encode
        From n prompts to embeddings (n, d), of any length.
    classes
        Names of the C classes.
    templates
        Prompts; every ``{}`` in one is replaced by the name of the class.

    Returns
    -------
    Tensor
        (C, d), each of length 1.
    """
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    with torch.no_grad():
        directions = in_chunks(
            lambda rows: F.normalize(encode(prompts[rows]), dim=-1), len(prompts), _PROMPTS_PER_STEP
        )
        return F.normalize(directions.unflatten(0, (len(classes), -1)).mean(1), dim=-1)
