"""DD-CAM: a map of a 1-minimal set of units that together preserve the prediction.

Khadka, Lei, Kacker and Kuhn, "DD-CAM", arXiv 2602.19274, 2026. The authors state the units (feature maps of
a convolutional network, patch tokens of a transformer), 1-minimality, the two searches (units one by one
where units do not interact in the head, delta debugging where they do) and that the map is made of the units
found alone. The rest is our CHOICE:

- A unit is masked by setting it to zero. The prediction is preserved while the target stays the top class.
  Where classes do not exclude each other, it is preserved while the target's own probability is more than
  0.5, because a multi-label classifier decides on each class alone.
- If the network has a class token, the tokens are those before the last block: after the last block they no
  longer reach the class token.
- A test of the head decides whether units interact, see :mod:`explainers.probes.additivity`.
- Without interactions, units are tried in ascending order of what they add to the margin of the target's
  logit over the strongest rival's. Passes are repeated until a pass removes nothing, since the set after a
  single pass need not be 1-minimal.
- With interactions, the empty set is tried first, since ddmin presupposes that some unit is needed. Then
  ddmin runs over the units in descending order of the target's logit with that unit alone. It keeps the first
  chunk that suffices; if none does, it removes the last chunk that can be removed.
- In a transformer whose masked tokens are all alike, ddmin evaluates the head on few tokens, see
  :mod:`explainers.probes.few_tokens`. The logits are the same up to rounding.
- At the end the real head certifies every set. A set that was found from sums, or on few tokens, can fail
  where two logits are equal up to rounding; it is then searched again with ddmin on the real head.
- The head is never evaluated twice on the same set of an image.
- The weight of a unit is the drop of the target's logit when the unit leaves the set. The map is left raw.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, Status, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.answers import Answers
from explainers.numerics.batching import in_chunks
from explainers.numerics.delta_debugging import ddmin, greedy_passes, search_together
from explainers.probes.additivity import additive_head
from explainers.probes.few_tokens import FewTokens, few_tokens
from explainers.probes.masked_forward import target_logit, with_prediction
from explainers.registry import register

_MOST_NUMBERS = 2**26  # held at once where each image has its own (U, C) contributions, or U sets of units
# On the CPU, operations on fewer numbers stay in one thread. A pass is thousands of small operations; several
# threads would spend their time waiting for each other.
_SERIAL = 2**15 - 1


class MaskedHead:
    """The head, evaluated on sets of units of a batch, in chunks; never twice on the same set of an image.

    Parameters
    ----------
    few
        How to evaluate the head on few tokens; by default it is evaluated on all of them.

    Attributes
    ----------
    evaluations
        (B,) int32, number of evaluations of the head per image so far.
    """

    def __init__(self, classifier: Classifier, batch: Batch, few: FewTokens | None = None) -> None:
        if batch.activations is None:
            raise ValueError("the batch has no activations")
        self.classifier, self.few, self.forwards = classifier, few, batch.forwards
        self.activations, self.targets = batch.activations, batch.targets
        self.evaluations = torch.zeros_like(batch.targets, dtype=torch.int32)
        self._answers = Answers(self._evaluate)

    def test(self, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the head with all units masked but those in ``keep``.

        Parameters
        ----------
        images
            (M,) int64, indices into the batch; an index may occur several times.
        keep
            (M, U) bool, the units that keep their activation.

        Returns
        -------
        preserved, logit
            (M,) bool, whether the target is predicted and its logit is finite; (M,) the target's logit.
        """
        logit, preserved = self._answers(images, keep).unbind(1)
        return preserved.bool() & logit.isfinite(), logit

    def _evaluate(self, images: Tensor, keep: Tensor) -> Tensor:
        """Return (M, 2): the target's logit, and 1 where the target is predicted."""
        self.evaluations += images.bincount(minlength=len(self.targets)).int()
        if self.few is None:
            return in_chunks(lambda rows: self._chunk(images[rows], keep[rows]), len(images), self.forwards)
        widths = self.few.widths(keep)
        order, parts = widths.argsort(stable=True), []
        each, counts = widths.unique(return_counts=True)
        for width, which in zip(each.tolist(), order.split(counts.tolist()), strict=True):

            def chunk(rows: slice, which: Tensor = which, width: int = width) -> Tensor:
                return self._chunk(images[which[rows]], keep[which[rows]], width)

            parts.append(in_chunks(chunk, len(which), self.forwards))
        return torch.cat(parts)[order.argsort()]

    def _chunk(self, images: Tensor, keep: Tensor, width: int | None = None) -> Tensor:
        activations = self.activations[images]
        if self.few is None or width is None:
            logits = self.classifier.head(self.classifier.mask_units(activations, keep))
        else:
            logits = self.few.logits(activations, keep, width)
        return with_prediction(target_logit)(self.classifier, logits, self.targets[images])

    def certify(self, images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Check sets of units with the head, and weigh their units.

        Parameters
        ----------
        images
            (b,) int64, indices into the batch.
        kept
            (b, U) bool, one set per image.

        Returns
        -------
        minimal, drops
            (b,) bool, whether the set preserves the prediction and no set with one unit less does; (b, U) the
            drop of the target's logit without each unit of the set, 0 for units outside it.
        """
        row, unit = kept.nonzero().T
        without = kept[row].scatter(1, unit[:, None], False)
        preserved, logit = self.test(torch.cat([images, images[row]]), torch.cat([kept, without]))
        sufficient, removable = preserved.split([len(kept), len(row)])
        together, apart = logit.split([len(kept), len(row)])
        drops = logit.new_zeros(kept.shape).index_put((row, unit), together[row] - apart)
        minimal = torch.ones_like(sufficient).index_fill(0, row[removable], False)
        return sufficient & minimal, drops


@register
class DDCam:
    """DD-CAM (arXiv 2602.19274, 2026), computed from cached activations and the head alone.

    An image has the status ``failed`` if the head does not predict the target from its activations. With
    ``activation = "sigmoid"``, a class is predicted if its probability is more than 0.5.

    Details: ``unit_mask``, the set; ``kept``, its size; ``head_evaluations``, on how many sets the head was
    evaluated, on few tokens or on all; ``certificate``, whether the head confirms that the set preserves the
    prediction and that no set with one unit less does.
    """

    name: ClassVar[str] = "ddcam"
    title: ClassVar[str] = "DD-CAM: a 1-minimal set of units that preserves the prediction (arXiv 2602.19274)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.PREDICTION})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier
        self.additive = additive_head(classifier)
        self.few = few_tokens(classifier) if self.additive is None else None

    def describe(self) -> Description:
        details = {
            "unit_mask": Detail((self.classifier.units.count,), "bool"),
            "kept": Detail((), "int32"),
            "head_evaluations": Detail((), "int32"),
            "certificate": Detail((), "bool"),
        }
        return Description(self.classifier.grid, details)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        head = MaskedHead(self.classifier, batch)
        quick = head if self.few is None else MaskedHead(self.classifier, batch, self.few)
        B, U = len(batch), self.classifier.units.count
        everything = torch.ones(B, U, dtype=torch.bool, device=batch.targets.device)
        predicted, logit = head.test(torch.arange(B, device=everything.device), everything)
        images = predicted.nonzero()[:, 0]
        kept, certificate = torch.zeros_like(everything), torch.zeros_like(predicted)
        drops = logit.new_zeros(B, U)
        if len(images):
            kept[images], certificate[images], drops[images] = self._search(head, quick, images)
        maps = self.classifier.place(drops, head.activations.to(drops.dtype)).float()
        maps[~predicted] = torch.nan
        found = zip(predicted.tolist(), statuses_of(maps), strict=True)
        evaluations = head.evaluations if quick is head else head.evaluations + quick.evaluations
        return Explanation(
            maps,
            [status if searched else Status.FAILED for searched, status in found],
            {
                "unit_mask": kept,
                "kept": kept.sum(1, dtype=torch.int32),
                "head_evaluations": evaluations * predicted,
                "certificate": certificate,
            },
        )

    def _search(self, head: MaskedHead, quick: MaskedHead, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find a set per image: the sets (b, U), whether each is certified (b,), and the drops (b, U).

        ``quick`` is the head for the search, and ``head`` the one that certifies what was found.
        """
        kept = self._passes(head, images) if self.additive else self._delta_debugging(quick, images)
        certified, drops = head.certify(images, kept)
        again = ~certified
        if again.any():
            kept[again] = self._delta_debugging(head, images[again])
            certified[again], drops[again] = head.certify(images[again], kept[again])
        return kept, certified, drops

    def _passes(self, head: MaskedHead, images: Tensor) -> Tensor:
        """Find the (b, U) sets from sums of contributions; needs units that do not interact."""
        assert self.additive is not None
        kept = []
        for part in images.split(self._images_at_once(images.device)):
            sums = self.additive.sums(self.classifier, head.activations[part], head.forwards)
            targets = head.targets[part]
            if not self.classifier.exclusive:
                sums, targets = sums.against_zero(targets), torch.ones_like(targets)
            kept.append(greedy_passes(sums, targets))
        if self.additive.per_mean is None:
            head.evaluations[images] += self.classifier.units.count
        return torch.cat(kept)

    def _images_at_once(self, device: torch.device) -> int:
        numbers = _MOST_NUMBERS // self.classifier.units.count
        if device.type == "cpu":
            numbers = min(numbers, _SERIAL)
        return max(1, numbers // self.classifier.num_classes)

    def _delta_debugging(self, head: MaskedHead, images: Tensor) -> Tensor:
        """Find the (b, U) sets by ddmin on the head; a set is empty where no unit is needed."""
        units = torch.eye(self.classifier.units.count, dtype=torch.bool, device=images.device)
        kept = torch.zeros(len(images), len(units), dtype=torch.bool, device=images.device)
        needed = ~head.test(images, kept)[0]
        images = images[needed]
        if not len(images):
            return kept
        alone = [
            head.test(part.repeat_interleave(len(units)), units.repeat(len(part), 1))[1]
            for part in images.split(max(1, _MOST_NUMBERS // units.numel()))
        ]
        # The searches advance together, so that their sets share batches of the head.
        orders = torch.cat(alone).view(-1, len(units)).argsort(dim=1, descending=True, stable=True)
        searches = [ddmin(order) for order in orders.cpu()]

        def preserved(rows: Tensor, keep: Tensor) -> Tensor:
            return head.test(images[rows.to(images.device)], keep.to(images.device))[0].cpu()

        kept[needed] = search_together(searches, preserved).to(images.device)
        return kept
