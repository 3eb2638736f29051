"""Run the head of a transformer on the tokens that are left, where all masked tokens are alike.

A masked token is zero. Nothing in the blocks after the target layer depends on a token's position, so masked
tokens stay equal to one another in every block. A few of them can therefore stand for all n of them, if
attention weighs each one as n / p tokens, where p is their number: log(n / p) is added to its scores. The
logits are those of the whole head, up to rounding.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Size, Tensor

from explainers.models.attention_calls import watching
from explainers.models.classifier import Classifier
from explainers.models.compute import full_precision
from explainers.numerics.randomness import uniform
from explainers.probes.additivity import PROBES, probe_inputs

# A row runs on the smallest of these numbers of patch tokens that leaves room for a masked one. They are
# fixed, so that a row is computed in the same way whatever other rows there are.
_WIDTHS = (4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256, 384, 512, 768, 1024)
_TOLERANCE = 0.01  # a share of what patches change

_agreed: WeakKeyDictionary[Classifier, bool] = WeakKeyDictionary()


def few_tokens(classifier: Classifier) -> FewTokens | None:
    """Return the head on few tokens, or None if its logits are not those of the whole head.

    Both are compared once per classifier on seeded inputs, with few and with many patches. They differ, for
    example, where the head pools the patches, or where its attention knows their positions.
    """
    if classifier.units.kind != "tokens" or len(classifier.activation_shape) != 2:
        return None
    few = FewTokens(classifier)
    if classifier not in _agreed:
        _agreed[classifier] = _agrees(classifier, few)
    return few if _agreed[classifier] else None


def _agrees(classifier: Classifier, few: FewTokens) -> bool:
    shares = torch.linspace(0, 1, PROBES)[:, None]
    keep = (uniform(torch.arange(PROBES), classifier.units.count) < shares).to(classifier.device)
    with torch.no_grad(), full_precision():
        activations = classifier.activations(probe_inputs(classifier))
        expected = classifier.head(classifier.mask_units(activations, keep))
        try:
            found = torch.cat(
                [
                    few.logits(activations[row : row + 1], keep[row : row + 1], width)
                    for row, width in enumerate(few.widths(keep).tolist())
                ]
            )
        except Exception:  # a head that cannot run on fewer tokens says so in a way of its own
            return False
    # What another head gets wrong is as large as what patches change in the logits at all.
    changes = (expected - expected.mean(0)).abs().max()
    return bool((found - expected).abs().max() <= _TOLERANCE * changes)


class FewTokens:
    """The head of ``classifier``, run on the tokens that are kept and on a few of the masked ones."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        U = classifier.units.count
        self._widths = torch.tensor([*(width for width in _WIDTHS if width < U), U])

    def widths(self, keep: Tensor) -> Tensor:
        """(M,) int64: the number of patch tokens on which each row of ``keep`` (M, U) bool has to run."""
        widths = self._widths.to(keep.device)
        needed = (keep.sum(1) + 1).clamp(max=keep.shape[1])
        return widths[torch.searchsorted(widths, needed)]

    def logits(self, activations: Tensor, keep: Tensor, width: int) -> Tensor:
        """Compute the logits of rows of one width.

        Parameters
        ----------
        activations
            (M, prefix + U, D).
        keep
            (M, U) bool, the patch tokens that keep their activations.
        width
            Number of patch tokens to run on, as :meth:`widths` gives it for every row.

        Returns
        -------
        Tensor
            (M, C), those of the head when the other patch tokens are zero, up to rounding.
        """
        prefix = self.classifier.prefix_tokens
        patches = (~keep).int().argsort(dim=1, stable=True)[:, :width]  # those that are kept come first
        present = keep.gather(1, patches)
        tokens = (
            activations[:, prefix:].take_along_dim(patches[..., None], 1).masked_fill(~present[..., None], 0)
        )
        masked, standing = (~keep).sum(1, keepdim=True), (~present).sum(1, keepdim=True)
        # Where no token is masked, none stands for others, and the logarithm of 0 / 0 is not used.
        weight = (masked / standing).log().to(activations.dtype)
        scores = torch.where(present, 0, weight)
        scores = torch.cat([scores.new_zeros(len(scores), prefix), scores], 1)

        def weigh(shape: Size) -> Tensor:
            if shape[0] != len(scores) or shape[-1] != scores.shape[1]:
                raise ValueError("the attention is over other tokens")
            return scores.view(len(scores), *[1] * (len(shape) - 2), -1)

        with watching(weigh=weigh) as watch:
            logits = self.classifier.head(torch.cat([activations[:, :prefix], tokens], 1))
        if not watch.calls:
            raise ValueError("there is no attention that can be weighted")
        return logits
