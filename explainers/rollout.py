"""Methods that combine the attention of all blocks of a transformer: rollout, and a form with gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.architectures import architecture_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.probes.attention import attention_tokens, explicit_attention
from explainers.probes.masked_forward import target_logit
from explainers.registry import register


class _OverBlocks:
    """The common part: the network runs on the pixels, and one row of a (T, T) matrix becomes the map."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.ATTENTION})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier
        self.tokens = attention_tokens(classifier)
        prefix = self.tokens.prefix_tokens
        known = architecture_of(classifier.network)
        reads_prefix = known.reads_prefix(classifier.network) if known and known.reads_prefix else prefix > 0
        self.head_row = torch.zeros(1, self.tokens.shape[0], device=classifier.device)
        if reads_prefix:
            self.head_row[:, 0] = 1
        else:
            self.head_row[:, prefix:] = 1 / self.tokens.units.count

    def describe(self) -> Description:
        return Description(self.tokens.grid)

    def explain(self, batch: Batch) -> Explanation:
        relevance = in_chunks(lambda rows: self._relevance(batch, rows), len(batch), batch.forwards)
        maps = relevance[:, self.tokens.prefix_tokens :].unflatten(1, self.tokens.grid)
        return Explanation(maps, statuses_of(maps))

    def _relevance(self, batch: Batch, rows: slice) -> Tensor:
        """Return the (b, T) float32 relevance of every token for the tokens that the head reads."""
        raise NotImplementedError


@register
class Rollout(_OverBlocks):
    """Attention rollout (Abnar and Zuidema, ACL 2020, section 3; arXiv 2005.00928).

    Each block mixes tokens by 0.5 A + 0.5 I, where A is its attention averaged over heads and I stands for
    the skip connection. The product over blocks says how much of each token reaches each token. The map is
    the class token's row of this product, over the patches. Its values are not negative, their sum is at most
    1, and it is the same for every class.

    CHOICES: If the head pools the patch tokens, by a mean or otherwise, the map is the mean of their rows. If
    the head also reads a distillation token, the map is the class token's row alone. For an unknown
    architecture, the first prefix token is taken as the class token.
    """

    name: ClassVar[str] = "rollout"
    title: ClassVar[str] = "Attention rollout: attention multiplied over all blocks (ACL 2020)"

    @torch.inference_mode()
    def _relevance(self, batch: Batch, rows: slice) -> Tensor:
        averages: list[Tensor] = []

        def keep_average(matrix: Tensor) -> None:
            averages.append(matrix.mean(1).float())

        with explicit_attention(self.classifier.network, keep_average):
            self.classifier.logits(batch.inputs[rows])
        row = self.head_row
        # From the last block to the first: a row times a matrix is cheaper than a matrix times a matrix.
        for average in reversed(averages):
            row = (row + row @ average) / 2
        return row.squeeze(1)


@register
class GenericAttention(_OverBlocks):
    """Gradient-weighted attention (Chefer, Gur and Wolf, ICCV 2021, eq. 5 and 6; arXiv 2103.15679).

    A matrix R starts as the identity, and each block adds A_bar R to it. A_bar is the mean over heads of the
    positive part of A times dy/dA, where A is the block's attention and y is the target's logit. The map is
    the class token's row of R, over the patches. Its values are not negative.

    CHOICES: The rows that are read are those of :class:`Rollout`. The identity itself is left out of the map:
    in the class token's row it is 0 on all patches, and in the mean row of pooled patches it is the same on
    all of them.
    """

    name: ClassVar[str] = "generic_attention"
    title: ClassVar[str] = "Attention times its gradient, accumulated over blocks (Chefer et al., ICCV 2021)"

    # Autograd refuses tensors that were made in inference mode, so copies are made outside it.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def _relevance(self, batch: Batch, rows: slice) -> Tensor:
        # The parameters require no gradient. The pixels do, so that all matrices do, the first one included.
        inputs = batch.inputs[rows].clone().requires_grad_()
        targets = batch.targets[rows].clone()
        matrices: list[Tensor] = []
        with self.classifier.differentiating():
            with explicit_attention(self.classifier.network, matrices.append):
                score = target_logit(self.classifier.logits(inputs), targets).sum()
            gradients = torch.autograd.grad(score, matrices, materialize_grads=True)
        gathered = torch.zeros_like(self.head_row)
        for matrix, gradient in zip(reversed(matrices), reversed(gradients), strict=True):
            a_bar = (gradient * matrix.detach()).relu().mean(1).float()
            gathered = gathered + (self.head_row + gathered) @ a_bar
        return gathered.squeeze(1)
