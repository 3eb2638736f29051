"""`floodlit layers`: the layers that could be the target layer of a job's model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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
    """

    place: Place
    default: bool
    way: str = ""
    cost: float | None = None


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
            chosen = {each.layer: each.layout for each in classifier.at_each_layer}
        except ValueError:  # there is none, and the rows say why
            chosen = {}
        inputs = classifier.normalised(classifier.probed)
        whole = _operations(classifier.network, inputs) or 1
        named = set()
        for place in places(classifier):
            named.add(place.layer)
            if place.layout is not None and place.parts is not None:
                cost = _operations(place.parts.head, place.values) / whole
                yield Row(place, place.layer in chosen, place.parts.way, cost)
            elif place.layout is not None:
                yield Row(place, place.layer in chosen)
        for layer, layout in chosen.items():
            if layer not in named:  # a tensor has one name here, of several that it has
                parts = cut(classifier.network, layer, inputs)
                place = Place(layer, parts.backbone(inputs), layout, reach="no row above has this name")
                yield Row(place, True, parts.way, _operations(parts.head, place.values) / whole)


@torch.no_grad()
def _operations(part: nn.Module, values: Tensor) -> int:
    """Number of operations of the products and convolutions of one pass."""
    with FlopCounterMode(display=False) as counter:
        part(values)
    return int(counter.get_total_flops())
