"""Read the attention matrices of vision transformers.

Transformers run fused kernels that never form the matrix softmax(q k^T / sqrt(d)). Within a ``with`` block
of this module, every self-attention module of a known kind forms it. The kind is recognised by class, so that
it does not matter where a network comes from: timm's ``Attention``, ``torch.nn.MultiheadAttention``
(torchvision, open_clip) and Hugging Face's ``CLIPAttention``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.models.architectures import prefix_tokens_of
from explainers.models.classifier import Classifier
from explainers.models.compute import eager
from explainers.models.layout import Layout, layout_of

Read = Callable[[Tensor], None]
Kind = Literal["timm", "torch", "hugging_face"]


@contextmanager
def explicit_attention(network: nn.Module, read: Read) -> Iterator[None]:
    """Within the block, call ``read`` with the attention matrix of every self-attention module that runs.

    The block restores the network when it ends, after an error as well.

    Parameters
    ----------
    network
        The network, in eval mode.
    read
        It is called with a matrix (B, heads, T, T) for each block of the network, in the order of the blocks.
        The matrix is the very tensor by which the values are multiplied, so that :func:`torch.autograd.grad`
        can take gradients on it; it requires a gradient if the inputs do.

    Raises
    ------
    ValueError
        While the network runs, if a module attends to other tokens than its own, or through a mask.
    """
    with ExitStack() as undo:
        undo.enter_context(eager())
        # On its fast path a layer of torch.nn runs as one kernel and does not call its attention module.
        undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for module in network.modules():
            kind = kind_of(module)
            if kind is not None:
                _MAKE_EXPLICIT[kind](module, read, undo)
        yield


def attention_tokens(classifier: Classifier) -> Layout:
    """The layout of the tokens that are the rows and columns of the network's attention matrices.

    It is found by running the network once on two grey inputs; the target layer does not matter.

    Raises
    ------
    ValueError
        If no attention can be read, or if it is not global: all blocks have to see the same T tokens, which
        are prefix tokens before a grid of patches.
    """
    shapes: list[torch.Size] = []
    grey = torch.full((2, 3, *classifier.input_size), 0.5, device=classifier.device)
    with torch.no_grad(), explicit_attention(classifier.network, lambda matrix: shapes.append(matrix.shape)):
        classifier.logits(grey)
    seen = {(batch, *tokens) for batch, _, *tokens in shapes}
    T = shapes[0][-1] if shapes else 0
    if seen != {(2, T, T)}:
        raise ValueError("the network has no attention over all tokens that can be read")
    return layout_of((T, 1), classifier.input_size, prefix_tokens_of(classifier.network))


def reads_attention(classifier: Classifier) -> bool:
    """Whether the network's attention can be read: :func:`attention_tokens` raises no error."""
    try:
        attention_tokens(classifier)
    except ValueError:
        return False
    return True


def _timm(module: Any, read: Read, undo: ExitStack) -> None:
    replace_on(undo, module, "fused_attn", False)
    undo.callback(module.attn_drop.register_forward_hook(lambda *call: read(call[-1])).remove)


def _hugging_face(module: Any, read: Read, undo: ExitStack) -> None:
    config = module.config  # the blocks of a tower share it; it is restored in reverse order
    undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
    config._attn_implementation = "eager"
    undo.callback(module.register_forward_hook(lambda *call: read(call[-1][1])).remove)


def _torch(module: Any, read: Read, undo: ExitStack) -> None:
    # The module can return its attention weights, but no gradient of the output passes through those.
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        # Both options append a token, so that the matrix would have one more column than rows.
        extended = module.bias_k is not None or module.add_zero_attn
        if key is not query or value is not query or masked or extended:
            raise ValueError("only self-attention without a mask can be read")
        tokens = query if module.batch_first else query.transpose(0, 1)
        projected = F.linear(tokens, module.in_proj_weight, module.in_proj_bias)
        q, k, v = projected.unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        matrix = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
        read(matrix)
        output = module.out_proj((matrix @ v).transpose(1, 2).flatten(2))
        weights = matrix.mean(1) if average_attn_weights else matrix
        return output if module.batch_first else output.transpose(0, 1), weights if need_weights else None

    replace_on(undo, module, "forward", forward)


def replace_on(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of an object until ``undo`` closes.

    An attribute that only the object's class had is deleted again, so that the class's is seen as before.
    """
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)


_MAKE_EXPLICIT: dict[Kind, Callable[[Any, Read, ExitStack], None]] = {
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


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of self-attention that ``module`` is; None if it is of no known kind."""
    cls = type(module)
    return _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
