"""Methods that combine the attention of all blocks of a transformer: rollout, and a form with gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.probes.attention import attention_tokens, explicit_attention
from explainers.probes.masked_forward import of_target
from explainers.registry import register


class _OverBlocks:
    """The common part: the network runs on the pixels, and one row of a (T, T) matrix becomes the map."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.ATTENTION})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier
        found = attention_tokens(classifier)
        self.tokens, self.reaching = found.layout, found.reaching
        prefix = self.tokens.prefix_tokens
        read = found.read.nonzero().flatten()
        self.head_row = torch.zeros(1, self.tokens.shape[0], device=classifier.device)
        if read[0] < prefix:
            self.head_row[:, read[0]] = 1
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

    CHOICES: Which tokens the head reads is found by gradients. The first one before the patches is taken as
    the class token, also where the head reads a distillation token or a mean of the patches beside it. If the
    head reads patch tokens alone, the map is the mean of their rows.
    """

    name: ClassVar[str] = "rollout"
    title: ClassVar[str] = "Attention rollout: attention multiplied over all blocks (ACL 2020)"

    @torch.inference_mode()
    def _relevance(self, batch: Batch, rows: slice) -> Tensor:
        averages: list[Tensor] = []

        def keep_average(matrix: Tensor) -> None:
            averages.append(matrix.mean(1).float())

        with explicit_attention(keep_average):
            self.classifier.logits(batch.inputs[rows])
        row = self.head_row
        # From the last block to the first: a row times a matrix is cheaper than a matrix times a matrix.
        for average in [averages[call] for call in reversed(self.reaching)]:
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
            with explicit_attention(matrices.append):
                score = of_target(self.classifier.logits(inputs), targets).sum()
            matrices = [matrices[call] for call in self.reaching]
            gradients = torch.autograd.grad(score, matrices, materialize_grads=True)
        gathered = torch.zeros_like(self.head_row)
        for matrix, gradient in zip(reversed(matrices), reversed(gradients), strict=True):
            a_bar = (gradient * matrix.detach()).relu().mean(1).float()
            gathered = gathered + (self.head_row + gathered) @ a_bar
        return gathered.squeeze(1)
