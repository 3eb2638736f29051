"""Run the head of a transformer on the tokens that are left, where all masked tokens are alike.

A masked token is zero. Nothing in the blocks after the target layer depends on a token's position, so masked
tokens stay equal to one another in every block. A few of them can therefore stand for all n of them, if
attention weighs each one as n / p tokens, where p is their number: log(n / p) is added to its scores. The
logits are those of the whole head, up to rounding.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from explainers.models.classifier import Classifier
from explainers.models.compute import eager, full_precision
from explainers.numerics.randomness import uniform
from explainers.probes.additivity import PROBES, probe_inputs
from explainers.probes.attention import Kind, kind_of, replace_on

# A row runs on the smallest of these numbers of patch tokens that leaves room for a masked one. They are
# fixed, so that a row is computed in the same way whatever other rows there are.
_WIDTHS = (4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256, 384, 512, 768, 1024)
_TOLERANCE = 0.01  # a share of what patches change
_MASKS: dict[Kind, str] = {"timm": "attn_mask", "torch": "key_padding_mask", "hugging_face": "attention_mask"}


_agreed: WeakKeyDictionary[Classifier, bool] = WeakKeyDictionary()


def few_tokens(classifier: Classifier) -> FewTokens | None:
    """Return the head on few tokens, or None if its logits are not those of the whole head.

    Both are compared once per classifier on seeded inputs, with few and with many patches. They differ, for
    example, where the head pools the patches, or where its attention knows their positions.
    """
    if classifier.units.kind != "tokens" or len(classifier.activation_shape) != 2:
        return None
    few = FewTokens(classifier)
    if not few.attentions:
        return None
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
        known = ((module, kind_of(module)) for module in classifier.network.modules())
        self.attentions = [(module, _MASKS[kind]) for module, kind in known if kind is not None]

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
        with ExitStack() as undo:
            undo.enter_context(eager())  # a compiled network would not see what is replaced here
            for module, argument in self.attentions:
                _weigh(module, argument, scores, undo)
            return self.classifier.head(torch.cat([activations[:, :prefix], tokens], 1))


def _weigh(module: nn.Module, argument: str, scores: Tensor, undo: ExitStack) -> None:
    """Let an attention module add ``scores`` (M, T) to what every query gives to each of its T keys."""
    whole = module.forward
    mask = scores if argument == "key_padding_mask" else scores[:, None, None]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return whole(*args, **(kwargs | {argument: mask}))

    replace_on(undo, module, "forward", forward)
