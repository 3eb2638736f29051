"""Why a metric has no value in a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from explainers.base import Need as ExplainerNeed
from explainers.statuses import Status
from storage.datasets.masks import OBJECT
from storage.datasets.notes import (
    BOX_CROPPED,
    BOX_EMPTY,
    BOX_OUTSIDE,
    MASK_CROPPED,
    MASK_EMPTY,
    kinds_of,
)
from storage.maps import read
from storage.run import Run
from storage.samples import each_sample
from tasks.metrics.base import Need
from tasks.metrics.registry import metrics
from tasks.run_parts import explainer_class

_OF_BOXES = (BOX_OUTSIDE, BOX_CROPPED, BOX_EMPTY)
_OF_MASKS = (MASK_EMPTY, MASK_CROPPED)
_NAMED = 3  # reasons that are told
# Why a metric that explains again cannot be computed for an explainer; see the metrics' ``excludes``.
_EXCLUDED = {
    ExplainerNeed.PREDICTION: "it explains the predicted class only",
    ExplainerNeed.TRAINED: "it has trained weights of its own",
}


class Reasons:
    """The reasons why metrics have no value in a run, whose samples have been merged.

    Samples, masks and done-records are read once, whatever the number of such metrics and explainers.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def of(self, explainer: str, column: str, excluded_by: Mapping[str, int]) -> str:
        """Return the reason why no image has a value of an explainer in a column.

        Parameters
        ----------
        explainer
            The explainer.
        column
            A column of one of the run's metrics.
        excluded_by
            The maps of the explainer by status.
        """
        unusable = [s for s in (Status.FAILED, Status.NOT_FINITE, Status.NO_LABEL) if excluded_by.get(s)]
        if sum(excluded_by.values()) == sum(excluded_by[status] for status in unusable):
            told = ", ".join(f"{excluded_by[status]} {status}" for status in unusable)
            return f"no map could be scored: {told}{self._of_given_maps(explainer)}"
        metric = metrics.get(next(n for n, entry in self._run.metrics.items() if column in entry.columns))
        needs = explainer_class(self._run, explainer).needs
        if Need.EXPLAINER in metric.needs and ExplainerNeed.GIVEN in needs:
            return "the metric does not apply to maps that another program made: it explains again"
        excluded = needs & getattr(metric, "excludes", frozenset())
        if excluded:
            return f"the metric does not apply to {explainer}: {_EXCLUDED[min(excluded)]}"
        return self._of_objects(metric.needs) or "the metric is undefined for all maps"

    def _of_objects(self, needs: frozenset[Need]) -> str | None:
        """Return what the boxes and masks of the run lack for a metric; None if that is not the reason."""
        if Need.BOXES in needs and not any(sample["boxes"] for sample in self._samples):
            return "no image has a box in the network's input" + _told(self._samples, _OF_BOXES)
        if Need.MASKS in needs and not self._any_object:
            what = "no image has a pixel of an object in the network's input"
            return what + _told(self._samples, _OF_MASKS)
        if {Need.BOXES, Need.MASKS} & needs and not any(map(self._shows_target, self._samples)):
            return "no image shows an object of the class that is explained"
        return None

    def _of_given_maps(self, explainer: str) -> str:
        """Return why maps that another program made failed, as the end of a sentence."""
        reasons = self._reasons[explainer].most_common(_NAMED)
        told = ", ".join(f"{reason}: {count}" for reason, count in reasons)
        return f" ({told})" if told else ""

    def _shows_target(self, sample: dict[str, Any]) -> bool:
        """Whether boxes or the mask of a sample count for one of its targets."""
        of_class = self._run.manifest.mask_labels or sample["box_labels"] is not None
        known = {*(sample["box_labels"] or ()), *(sample["labels"] if self._run.manifest.mask_labels else ())}
        return not of_class or bool(known.intersection(sample["targets"] or ()))

    @cached_property
    def _reasons(self) -> dict[str, Counter[str]]:
        """By explainer, the reasons why given maps failed, each with the number of maps."""
        found = {name: Counter[str]() for name in self._run.explainers}
        for record in self._run.records("saliency"):
            found[record.step.explainer].update(dict(record.facts.reasons or {}))
        return found

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        """The samples with boxes or notes."""
        read = each_sample(self._run.root, ["boxes", "box_labels", "labels", "targets", "notes"])
        return [sample for sample in read if sample["boxes"] or sample["notes"]]

    @cached_property
    def _any_object(self) -> bool:
        """Whether a mask of the run holds a pixel of an object."""
        run = self._run
        return any((read(run.masks, *run.bounds(shard)) == OBJECT).any() for shard in range(run.shards))


def _told(samples: list[dict[str, Any]], kinds: tuple[str, ...]) -> str:
    """Return how often some notes were made, as the end of a sentence."""
    counts = kinds_of(samples)
    told = ", ".join(f"{kind}: {counts[kind]}" for kind in kinds if counts[kind])
    return f" ({told})" if told else ""
