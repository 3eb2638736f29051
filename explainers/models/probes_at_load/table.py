"""The table of the probes, and the function that asks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explainers.models.compute import plainly
from explainers.models.cutting.refusals import CutError
from explainers.models.frozen import Frozen
from explainers.models.probes_at_load import layer, output, rows
from explainers.models.probes_at_load.rows import Asked, RefusedError
from plugins.reasons import first_line


@dataclass(frozen=True)
class Probe:
    """One question to a network.

    Attributes
    ----------
    asks, refuses
        What is asked and what is refused, in words for the documentation.
    ask
        Asks a classifier. It returns what was seen, in a few words, and raises ValueError, in one line that
        begins with the key, where the answer is wrong.
    of_layers
        Whether the question is about the target layer, so that only classifiers of images are asked.
    """

    asks: str
    refuses: str
    ask: Callable[[Asked], str]
    of_layers: bool = False


PROBES = {
    "finite": Probe(
        "Are the weights and the logits numbers?",
        "weights that hold NaN; logits that are infinite or NaN for every input",
        rows.finite,
    ),
    "twice": Probe(
        "Does the same input give the same logits a second time?",
        "dropout that is left on, random numbers, a network that remembers earlier inputs",
        rows.twice,
    ),
    "batch": Probe(
        "Does an input alone get the logits that it gets beside others?",
        "normalisation over the batch, and any other dependence of one row on the other rows",
        rows.batch,
    ),
    "output": Probe(
        "Does the network return what `model.output` and `model.activation` say?",
        "softmax, log-softmax or sigmoid at the end where logits are expected, and the reverse",
        output.output,
    ),
    "head": Probe(
        "Does the head, run on the activations of the target layer, give the network's own logits?",
        "a layer at which the network cannot be cut in two",
        layer.head,
        of_layers=True,
    ),
    "cells": Probe(
        "Has the grid several cells, and does each of them reach the logits?",
        "a pooled layer; patch tokens that the classification head never reads",
        layer.cells,
        of_layers=True,
    ),
    "patch": Probe(
        "Does the strongest change on the grid follow a bright patch that is moved over the input?",
        "tokens in another order than row by row; axes that hold something other than rows and columns",
        layer.patch,
        of_layers=True,
    ),
}


def probe(classifier: Frozen, of_layers: bool | None = None) -> dict[str, str]:
    """Ask a classifier the probes that its modality has, on seeded inputs.

    It costs about a dozen forward passes of a few inputs each, in float32 without TF32.

    Parameters
    ----------
    classifier
        A classifier of any modality; it stays as it is.
    of_layers
        True asks the probes of the target layer alone, and cuts the network there. False asks all others,
        which need no layer. By default all probes are asked.

    Returns
    -------
    dict
        For each probe what was seen, in a few words.

    Raises
    ------
    ValueError
        In one line that names the key of the job, what was seen and what to do.
    """
    asked, seen = Asked(classifier), {}
    with plainly():
        for name, each in PROBES.items():
            if of_layers is not None and each.of_layers != of_layers:
                continue
            if not each.of_layers:
                seen[name] = _answer(name, each, asked)
            elif classifier.modality == "image":
                told = {one.classifier.layer: _answer(name, each, one) for one in asked.at_each_layer()}
                several = "; ".join(f"{layer}: {answer}" for layer, answer in told.items())
                seen[name] = several if len(told) > 1 else next(iter(told.values()))
    return seen


def _answer(name: str, each: Probe, asked: Asked) -> str:
    """Ask one question; what stops the network is a ValueError as well."""
    if each.of_layers:
        asked.classifier.grid  # noqa: B018  where the network cannot be cut, this says why
    try:
        return each.ask(asked)
    except (RefusedError, CutError):
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"model.source: the network stopped at the probe {name!r}: {type(error).__name__}: "
            f"{first_line(error)}; it must run on any number of inputs"
        ) from error
