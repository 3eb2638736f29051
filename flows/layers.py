"""`floodlit layers`: the layers that could be the target layer of a job's model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from explainers.models.classifier import Classifier
from explainers.models.cutting import cut
from explainers.models.finding import Place, places
from explainers.models.loading import load
from flows.input_form import bands_of, geometry_of
from flows.job import Job, JobError
from storage.datasets.opening import open_dataset


@dataclass(frozen=True)
class Row:
    """A layer that could be named, or why it cannot.

    Attributes
    ----------
    place
        What was found there.
    default
        Whether the job takes it: it is one that the job names, or else the default.
    way
        How the network is cut there; empty if it is not.
    cost
        Operations of the part behind it, as a share of the whole network's; None if it is not cut there.
    choice
        How the job's layer was chosen, in words; empty if the job names it.
    """

    place: Place
    default: bool
    way: str = ""
    cost: float | None = None
    choice: str = ""


def layers_of(job: Job) -> Iterator[Row]:
    """List the layers of a job's model on which there is a grid, from the logits backwards.

    Raises
    ------
    JobError
        In one line that names the key, if the model cannot be loaded or does not explain images.
    """
    bands = bands_of(job.dataset, job.model)
    dataset = open_dataset(job.dataset, bands)
    if dataset.modality != "image":
        raise JobError(f"dataset: only models of images have layers, and these are {dataset.modality}s")
    _, size, _ = geometry_of(job.model, dataset, bands)
    classifier = load(job.model, input_size=size, modality="image")
    with closing(classifier):
        try:
            chosen = {each.layer: each for each in classifier.at_each_layer}
            layouts = {layer: each.layout for layer, each in chosen.items()}
        except ValueError:  # there is none, and the rows say why
            chosen = {}
        inputs = classifier.normalised(classifier.probed)
        whole = _operations(classifier.network, inputs) or 1
        named = set()
        for place in places(classifier):
            named.add(place.layer)
            if place.layout is None:
                continue
            cost = None if place.parts is None else _operations(place.parts.head, place.values) / whole
            way = "" if place.parts is None else place.parts.way
            yield Row(place, place.layer in chosen, way, cost, _choice(chosen.get(place.layer)))
        for layer in chosen:
            if layer in named:
                continue
            # A tensor has one name here, of several that it has.
            parts = cut(classifier.network, layer, inputs)
            place = Place(layer, parts.backbone(inputs), layouts[layer], reach="no row above has this name")
            cost = _operations(parts.head, place.values) / whole
            yield Row(place, True, parts.way, cost, _choice(chosen[layer]))


def _choice(classifier: Classifier | None) -> str:
    """How a classifier's layer was chosen; other places that were not tried have rows of their own."""
    return "" if classifier is None else classifier.target_layer.choice.partition(";")[0]


@torch.no_grad()
def _operations(part: nn.Module, values: Tensor) -> int:
    """Number of operations of the products and convolutions of one pass."""
    with FlopCounterMode(display=False) as counter:
        part(values)
    return int(counter.get_total_flops())
