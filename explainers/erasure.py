"""Erasure: the probability that the classifier loses without one token, or without one number."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.black_box import BlackBox, check_fill
from explainers.probes.masked_forward import MaskedForward, target_probability
from explainers.registry import register


class ErasureParameters(base.Parameters):
    """Parameters of erasure."""

    fill: str | None = Field(
        None,
        description="what replaces the token that is left out: mask or remove for texts, zero or mean for "
        "numbers; by default the first of these",
    )


@register
class Erasure:
    """Leave one out (Li, Monroe and Jurafsky, arXiv 1612.08220), for texts and numbers.

    The value at a token is the target's probability on the whole input minus the probability without the
    token. The paper uses the relative loss of the log-likelihood, averaged over a corpus. Special tokens and
    padding have the value 0. For images, use occlusion.

    Details: ``forward_passes``, one per token and one for the whole input.
    """

    name: ClassVar[str] = "erasure"
    title: ClassVar[str] = "Leave one out: the probability lost without a token (arXiv 1612.08220)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SEQUENCE})
    Parameters: ClassVar[type[base.Parameters]] = ErasureParameters

    def __init__(self, classifier: BlackBox, parameters: ErasureParameters) -> None:
        self.classifier, self.fill = classifier, parameters.fill or classifier.fills[0]
        check_fill(classifier, self.fill)

    def describe(self) -> Description:
        return Description(self.classifier.input_shape[1:], {"forward_passes": Detail((), "int32")})

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        sites = self.classifier.sites(batch.inputs)
        hidden = self.classifier.fill(batch.inputs, self.fill).expand_as(batch.inputs)
        # One more row per input, in which nothing is left out.
        index, left_out = torch.cat([sites, torch.ones_like(sites[:, :1])], 1).nonzero().T
        place = torch.arange(sites.shape[1], device=sites.device)

        def erased(rows: torch.Tensor) -> torch.Tensor:
            image, one = index[rows], place == left_out[rows, None]
            return torch.where(one[:, None], hidden[image], batch.inputs[image])

        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, target_probability)
        found = masked.scores(index, erased).float()
        scores = found.new_zeros(len(batch), sites.shape[1] + 1)
        scores[index, left_out] = found
        maps = torch.where(sites, scores[:, -1:] - scores[:, :-1], 0)
        return Explanation(maps, statuses_of(maps, sites), {"forward_passes": masked.passes})
