"""Makes an explainer for a classifier: where the classifier has several target layers, their mean map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.base import (
    OF_LAYER,
    Batch,
    Description,
    Explainer,
    Explanation,
    Parameters,
    Status,
    statuses_of,
)
from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier

_PASSES = "forward_passes"  # the only detail that layers have in common: it is added up


def make_explainer(cls: Any, classifier: BlackBox, parameters: Parameters) -> Explainer:
    """An explainer of the class ``cls``; the mean over the layers, if it reads a layer and there are several.

    Raises
    ------
    ValueError
        In one line: the parameters do not fit the classifier, or the method gives details of one layer and
        several are named.
    """
    if isinstance(classifier, Classifier) and len(classifier.at_each_layer) > 1 and cls.needs & OF_LAYER:
        return cast(Explainer, MeanOfLayers(cls, classifier, parameters))  # its attributes are the class's
    made: Explainer = cls(classifier, parameters)
    return made


class MeanOfLayers:
    """An explainer run at each of several target layers; its map is the mean of theirs.

    Every layer's map is divided by its largest magnitude, so that layers count alike, and interpolated
    (bilinear) to the largest number of rows and columns that a layer has. The maps keep their signs. A map
    that is zero everywhere counts as zero.

    CHOICE: pytorch-grad-cam clips each layer's map at zero, stretches it to [0, 1], resizes it to the input
    and takes the mean. Here evidence against the class in one layer is taken off the evidence of another, as
    within the map of one layer. Where all maps are at least 0 and 0 somewhere, the two means are the same but
    for the interpolation, which goes to the finest layer first.

    A method whose details describe one layer, such as a set of its units, is refused. ``forward_passes`` is
    the sum over the layers.
    """

    def __init__(self, cls: Any, classifier: Classifier, parameters: Parameters) -> None:
        self.name, self.title, self.needs, self.Parameters = cls.name, cls.title, cls.needs, cls.Parameters
        self.classifier = classifier
        self.made: list[Explainer] = []
        for each in classifier.at_each_layer:
            self.made.append(cls(each, parameters))
            self._check_details(self.made[-1].describe(), classifier.layers)
        grids = [explainer.describe().grid for explainer in self.made]
        self.grid = tuple(map(max, *grids))

    @staticmethod
    def _check_details(description: Description, layers: Sequence[str]) -> None:
        own = [name for name in description.details if name != _PASSES]
        if own:
            raise ValueError(
                f"it describes one layer ({own[0]}), which has no mean over several, and model.layer names "
                f"{len(layers)}: {', '.join(layers)}; name one of them, or leave the explainer out"
            )

    def describe(self) -> Description:
        return Description(self.grid, self.made[0].describe().details)

    def explain(self, batch: Batch) -> Explanation:
        given = [batch] * len(self.made)
        if batch.activations is not None:
            parts = self.classifier.split(batch.activations)
            given = [replace(batch, activations=part) for part in parts]
        found = [explainer.explain(each) for explainer, each in zip(self.made, given, strict=True)]
        maps = _sum([self._on_the_grid(each.maps) for each in found]) / len(found)
        failed = [Status.FAILED in of_one for of_one in zip(*(each.statuses for each in found), strict=True)]
        statuses = [
            Status.FAILED if lost else status for lost, status in zip(failed, statuses_of(maps), strict=True)
        ]
        details = {name: _sum([each.details[name] for each in found]) for name in found[0].details}
        return Explanation(maps, statuses, details)

    def _on_the_grid(self, maps: Tensor) -> Tensor:
        """(B, *self.grid) maps of one layer, each divided by its largest magnitude."""
        largest = maps.abs().amax((1, 2), keepdim=True)
        scaled = maps / torch.where(largest == 0, 1, largest)
        return F.interpolate(scaled[:, None], self.grid, mode="bilinear", align_corners=False)[:, 0]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors, of their type."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
