"""P-TAME: a small trained head turns the features of an auxiliary network into one map per class.

Ntrougkas, Mezaris and Patras, "P-TAME: explain any image classifier with trained perturbations", arXiv
2501.17813; IEEE OJSP 2025. What the released behaviour leaves open is our CHOICE:

- Upsampling does not align corners. If the side of a tap is not the first tap's side divided by a power of
  two, the last upsampling step goes to the first tap's size directly.
- A constant map, for which min-max scaling is undefined, becomes zero.
- ``output`` offers the sigmoid of the logits too: the mask through which the classifier saw the images during
  training. Min-max scaling of the logits, as released, ranks pixels in the same order but leaves the
  background grey, which lowers the scores of energy-based metrics and of metrics with soft masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.classifier import Classifier
from explainers.models.ptame_head import HeadConfig, Output, load_head, maps_of, normalisation_of, read_head
from explainers.numerics.batching import in_chunks
from explainers.registry import register

_SHORT = 12  # characters of a fingerprint that a message shows


class PTameParameters(base.Parameters):
    """Parameters of P-TAME."""

    head: Path | None = Field(
        None,
        strict=False,  # a path is a text in TOML and JSON
        description="file of a trained head, or models:/NAME/VERSION in MLflow's registry; required",
    )
    auxiliary: Path | None = Field(
        None,
        strict=False,
        description="Python file that builds the auxiliary network; needed only if it is no longer at the "
        "path that the head has stored",
    )
    output: Output = Field(
        "minmax",
        description="how logits become a map in [0, 1]: minmax scales each map, as in the released "
        "evaluation; sigmoid gives the mask that was used in the training",
    )


@register
class PTame:
    """P-TAME (arXiv 2501.17813; IEEE OJSP 2025): maps drawn by a head that was trained for this classifier.

    The classifier itself is not run. The auxiliary network runs once per image, on inputs that are normalised
    as for the classifier. The map is the head's output for the target, min-maxed to [0, 1] as in the released
    evaluation, or its sigmoid. Its grid is that of the first tap, which is 56x56 for ResNet-18 and inputs of
    224x224. `floodlit train` trains heads.
    """

    name: ClassVar[str] = "ptame"
    title: ClassVar[str] = "P-TAME: an attention head trained for this classifier (arXiv 2501.17813)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PIXELS, Need.TRAINED})
    Parameters: ClassVar[type[base.Parameters]] = PTameParameters

    def __init__(self, classifier: Classifier, parameters: PTameParameters) -> None:
        if parameters.head is None:
            raise ValueError("head: say the file of a trained head, as `floodlit train` makes it")
        config = read_head(parameters.head)[0]
        _check(parameters.head, config, classifier)
        self.classifier, self.output = classifier, parameters.output
        self.head, _, self.auxiliary = load_head(parameters.head, classifier.device, parameters.auxiliary)
        self.grid = self.auxiliary.shapes(config.input_size, len(config.mean))[0][1:]

    def describe(self) -> Description:
        return Description(self.grid)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        maps = in_chunks(
            lambda rows: maps_of(
                self.head,
                self.auxiliary,
                self.classifier,
                batch.inputs[rows],
                batch.targets[rows],
                self.output,
            ),
            len(batch),
            batch.forwards,
        )
        return Explanation(maps, statuses_of(maps))


def _kind(exclusive: bool) -> str:
    return "a softmax" if exclusive else "sigmoids"


def _check(path: Path, config: HeadConfig, classifier: Classifier) -> None:
    """Refuse a head that was trained for another classifier."""
    facts: list[tuple[str, Any, Any]] = [
        ("classes", config.num_classes, classifier.num_classes),
        ("probabilities", _kind(config.exclusive), _kind(classifier.exclusive)),
        ("mean and std", [config.mean, config.std], list(normalisation_of(classifier))),
        ("pixels", "x".join(map(str, config.input_size)), "x".join(map(str, classifier.input_size))),
        ("weights", config.classifier_fingerprint, classifier.fingerprint),
    ]
    for what, trained, here in facts:
        if trained != here:
            theirs, ours = (value[:_SHORT] if what == "weights" else value for value in (trained, here))
            raise ValueError(
                f"head: {path} was trained for another classifier, whose {what} are {theirs}, here {ours}; "
                "train one for this classifier with `floodlit train`"
            )
