"""Run the last block of a transformer for its class token alone, where the head reads nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.models.architectures import architecture_of
from explainers.models.classifier import Classifier
from explainers.models.compute import eager, full_precision
from explainers.models.replacing import replace_on

Kind = Literal["timm", "torch", "hugging_face"]

_SECOND_NORMS = ("norm2", "ln_2", "layer_norm2")  # in timm; in torchvision and open_clip; in Hugging Face


def class_token_alone(classifier: Classifier) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A cheaper :meth:`Classifier.encode`, whose last block computes the class token alone.

    The block's attention then has one query per input, and its MLP one row. If the block is of an unknown
    kind, or the head reads more than the first token, ``encode`` itself is returned. Both are compared on two
    seeded inputs.

    Returns
    -------
    Callable
        From tokens (B, prefix + N, D), and the patches (B, N) that are present or None, to logits (B, C).
    """
    parts = _last_block(classifier)
    if parts is None:
        return classifier.encode

    def narrowed(tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        with ExitStack() as undo:
            undo.enter_context(eager())  # a compiled network would not see what is replaced here
            _narrow(*parts, undo)
            return classifier.encode(tokens, keep)

    return narrowed if _agrees(classifier, narrowed) else classifier.encode


def _last_block(classifier: Classifier) -> tuple[nn.Module, nn.Module] | None:
    """The attention of the last block, and the norm after it; None if they are not found."""
    known = architecture_of(classifier.network)
    name, _, side = (known.layer(classifier.network) if known else "").partition(":")
    if side != "input":
        return None
    block = classifier.network.get_submodule(name)
    norms = [getattr(block, norm) for norm in _SECOND_NORMS if hasattr(block, norm)]
    attentions = [module for module in block.modules() if _kind_of(module) is not None]
    if len(norms) != 1 or len(attentions) != 1 or not getattr(attentions[0], "batch_first", True):
        return None
    return attentions[0], norms[0]


def _agrees(classifier: Classifier, narrowed: Callable[[Tensor], Tensor]) -> bool:
    with torch.no_grad(), full_precision():
        tokens = classifier.embed(classifier.probed)
        return torch.allclose(narrowed(tokens), classifier.encode(tokens), rtol=1e-3, atol=1e-4)


def _narrow(attention: nn.Module, norm: nn.Module, undo: ExitStack) -> None:
    kind = _kind_of(attention)
    assert kind is not None
    project = _PROJECT[kind]

    # The skip connection adds this one row to the rows of all tokens. Only the first row is then right, and
    # only that one is read.
    def forward(*args: Any, **kwargs: Any) -> Any:
        return project(attention, args[0] if args else kwargs["hidden_states"])

    replace_on(undo, attention, "forward", forward)
    undo.callback(norm.register_forward_pre_hook(lambda _, args: (args[0][:, :1],)).remove)


def _attended(heads: int, q: Tensor, k: Tensor, v: Tensor, norms: tuple[Any, Any] = (None, None)) -> Tensor:
    """Attention output (B, 1, D) from a query (B, 1, D), and keys and values (B, T, D)."""
    q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    q, k = (each if norm is None else norm(each) for each, norm in zip((q, k), norms, strict=True))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _split(weight: Tensor, bias: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The query of the first token, and the keys and values of all tokens, from one joint projection."""
    D = len(weight) // 3
    q = F.linear(tokens[:, :1], weight[:D], None if bias is None else bias[:D])
    k, v = F.linear(tokens, weight[D:], None if bias is None else bias[D:]).chunk(2, 2)
    return q, k, v


def _timm(module: Any, tokens: Tensor) -> Tensor:
    q, k, v = _split(module.qkv.weight, module.qkv.bias, tokens)
    attended = _attended(module.num_heads, q, k, v, (module.q_norm, module.k_norm))
    output: Tensor = module.proj(module.norm(attended))
    return output


def _torch(module: Any, tokens: Tensor) -> tuple[Tensor, None]:
    q, k, v = _split(module.in_proj_weight, module.in_proj_bias, tokens)
    return module.out_proj(_attended(module.num_heads, q, k, v)), None


def _hugging_face(module: Any, hidden_states: Tensor) -> tuple[Tensor, None]:
    q, k, v = module.q_proj(hidden_states[:, :1]), module.k_proj(hidden_states), module.v_proj(hidden_states)
    return module.out_proj(_attended(module.num_heads, q, k, v)), None


_PROJECT: dict[Kind, Callable[[Any, Tensor], Any]] = {
    "timm": _timm,
    "torch": _torch,
    "hugging_face": _hugging_face,
}
_KINDS: dict[str, Kind] = {
    "timm.layers.attention.Attention": "timm",
    "timm.models.vision_transformer.Attention": "timm",  # its module in older versions of timm
    "torch.nn.modules.activation.MultiheadAttention": "torch",
    "transformers.models.clip.modeling_clip.CLIPAttention": "hugging_face",
}


def _kind_of(module: nn.Module) -> Kind | None:
    """The kind of self-attention that ``module`` is; None if it is of no known kind."""
    cls = type(module)
    return _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
