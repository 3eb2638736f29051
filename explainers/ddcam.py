"""After DD-CAM: the joint activation of a 1-minimal set of units that preserves the prediction.

Khadka, Lei, Kacker and Kuhn, "DD-CAM", arXiv 2602.19274, 2026. The authors state the units (feature maps of
a convolutional network, patch tokens of a transformer), 1-minimality, the two searches (units one by one
where the head lets them not interact, delta debugging where they do) and that only the units found make the
map. The rest is our CHOICE:

- A unit is masked by setting it to zero; the prediction is preserved while the target stays the top class.
- With a class token, the tokens are those before the last block; after it they no longer reach the token.
- The head is asked whether units interact, see :mod:`explainers.probes.additivity`.
- Without interactions, units are tried in rising order of what they add to the target's logit over the
  strongest rival's, in passes until one removes nothing: a single pass is not 1-minimal.
- With interactions, the empty set is tried first, for ddmin presupposes that something is needed. Then ddmin
  runs over the units in descending order of the target's logit with that unit alone; it keeps the first
  chunk that suffices or else removes the last that can go.
- At the end the real head certifies every set. A set from sums that fails, two logits being equal up to
  rounding, is searched again with ddmin.
- A unit weighs the drop of the target's logit when it leaves the set; the map is left raw.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, Status, statuses_of
from explainers.models.classifier import Classifier
from explainers.numerics.batching import in_chunks
from explainers.numerics.delta_debugging import ddmin, greedy_passes, search_together
from explainers.probes.additivity import additive_head
from explainers.probes.masked_forward import target_logit
from explainers.registry import register

_MOST_CONTRIBUTIONS = 2**26  # numbers held at once where each image has its own (U, C) contributions
# Operations on fewer numbers stay in one thread on the CPU. A pass is thousands of small operations, which in
# several threads would spend their time on waiting for each other.
_SERIAL = 2**15 - 1


class MaskedHead:
    """The head on sets of units of a batch, in chunks, counting evaluations per image.

    Attributes
    ----------
    evaluations
        (B,) int32.
    """

    def __init__(self, classifier: Classifier, batch: Batch) -> None:
        if batch.activations is None:
            raise ValueError("the batch has no activations")
        self.classifier, self.forwards = classifier, batch.forwards
        self.activations, self.targets = batch.activations, batch.targets
        self.evaluations = torch.zeros_like(batch.targets, dtype=torch.int32)

    def test(self, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """For (M,) images with the units in ``keep`` (M, U): is the target predicted, and its logit."""

        def run(rows: slice) -> Tensor:
            image = images[rows]
            logits = self.classifier.head(self.classifier.mask_units(self.activations[image], keep[rows]))
            target = self.targets[image]
            preserved = (logits.argmax(1) == target).to(logits.dtype)
            return torch.stack([preserved, target_logit(logits, target)], 1)

        self.evaluations += images.bincount(minlength=len(self.targets)).int()
        preserved, logit = in_chunks(run, len(images), self.forwards).unbind(1)
        return preserved.bool() & logit.isfinite(), logit

    def certify(self, images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each set in ``kept`` (b, U) is 1-minimal (b,), and its units' logit drops (b, U)."""
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
    """DD-CAM (arXiv 2602.19274, 2026) from cached activations through the head alone.

    Details: ``unit_mask``, the set; ``kept``, its size; ``head_evaluations``, what it cost; ``certificate``,
    whether the head confirms that the set preserves the prediction and no set with one unit less does. An
    image whose activations do not give the target as the prediction fails.
    """

    name: ClassVar[str] = "ddcam"
    title: ClassVar[str] = "DD-CAM: a 1-minimal set of units that preserves the prediction (arXiv 2602.19274)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS, Need.PREDICTION})
    Parameters: ClassVar[type[base.Parameters]] = base.Parameters

    def __init__(self, classifier: Classifier, parameters: base.Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier
        self.additive = additive_head(classifier)

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
        B, U = len(batch), self.classifier.units.count
        everything = torch.ones(B, U, dtype=torch.bool, device=batch.targets.device)
        predicted, logit = head.test(torch.arange(B, device=everything.device), everything)
        images = predicted.nonzero()[:, 0]
        kept, certificate = torch.zeros_like(everything), torch.zeros_like(predicted)
        drops = logit.new_zeros(B, U)
        if len(images):
            kept[images], certificate[images], drops[images] = self._search(head, images)
        maps = self.classifier.place(drops, head.activations.to(drops.dtype)).float()
        maps[~predicted] = torch.nan
        found = zip(predicted.tolist(), statuses_of(maps), strict=True)
        return Explanation(
            maps,
            [status if searched else Status.FAILED for searched, status in found],
            {
                "unit_mask": kept,
                "kept": kept.sum(1, dtype=torch.int32),
                "head_evaluations": head.evaluations * predicted,
                "certificate": certificate,
            },
        )

    def _search(self, head: MaskedHead, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For b images: their sets (b, U), whether each is certified (b,), and the units' drops (b, U)."""
        kept = self._passes(head, images) if self.additive else self._delta_debugging(head, images)
        certified, drops = head.certify(images, kept)
        again = ~certified
        if self.additive and again.any():
            kept[again] = self._delta_debugging(head, images[again])
            certified[again], drops[again] = head.certify(images[again], kept[again])
        return kept, certified, drops

    def _passes(self, head: MaskedHead, images: Tensor) -> Tensor:
        """(b, U) sets found from sums of contributions."""
        assert self.additive is not None
        kept = []
        for part in images.split(self._images_at_once(images.device)):
            sums = self.additive.sums(self.classifier, head.activations[part], head.forwards)
            kept.append(greedy_passes(sums, head.targets[part]))
        if self.additive.per_mean is None:
            head.evaluations[images] += self.classifier.units.count
        return torch.cat(kept)

    def _images_at_once(self, device: torch.device) -> int:
        numbers = _MOST_CONTRIBUTIONS // self.classifier.units.count
        if device.type == "cpu":
            numbers = min(numbers, _SERIAL)
        return max(1, numbers // self.classifier.num_classes)

    def _delta_debugging(self, head: MaskedHead, images: Tensor) -> Tensor:
        """(b, U) sets found by ddmin on the head, or empty where nothing is needed."""
        units = torch.eye(self.classifier.units.count, dtype=torch.bool, device=images.device)
        kept = torch.zeros(len(images), len(units), dtype=torch.bool, device=images.device)
        needed = ~head.test(images, kept)[0]
        images = images[needed]
        alone = [head.test(image.expand(len(units)), units)[1] for image in images]
        searches = [ddmin(effect.argsort(descending=True, stable=True).cpu()) for effect in alone]

        def preserved(rows: Tensor, keep: Tensor) -> Tensor:
            return head.test(images[rows.to(images.device)], keep.to(images.device))[0].cpu()

        if searches:
            kept[needed] = search_together(searches, preserved).to(images.device)
        return kept
