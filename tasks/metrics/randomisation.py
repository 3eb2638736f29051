"""Whether maps change with what they should explain: the network's weights, and the class.

An explainer whose maps do not change does not show what the network has learnt. To pass these tests is
necessary, but not sufficient. The controls, the random one included, depend on their images' seeds alone, so
their similarity is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from explainers.base import Need as ExplainerNeed
from explainers.base import Parameters
from explainers.numerics.randomness import seed_of, uniform
from tasks.metrics.base import Axes, Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.random_weights import free_weights, layers_with_weights, network_of, with_random_weights
from tasks.metrics.registry import register
from tasks.metrics.similarity import flat, spearman, ssim

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

_CLASSES = seed_of("random_logit")  # makes the draw of a class independent of tie-breaks
_FILLS = {
    "cascading": "weights drawn anew, from the logits down to the input",
    "independent": "weights of one layer at a time drawn anew",
}


class _Similarity:
    """The common part: the rank correlation of two maps of the same input, and for images their SSIM."""

    name: ClassVar[str]
    fill: str | None = None

    def __init__(self, classifier: BlackBox) -> None:
        self.classifier = classifier

    def columns(self) -> list[Column]:
        names = [self.name, f"{self.name}_ssim"][: 2 if self.classifier.modality == "image" else 1]
        return [Column(name, -1.0, 1.0, "lower", self.fill) for name in names]

    def _similarities(self, maps: Tensor, others: Tensor) -> dict[str, Tensor]:
        """Compare prepared maps with others of the same inputs: {column: (B,)}.

        The rank correlation is NaN for flat maps in ``maps``. For a flat map in ``others`` it is 0, which is
        the average if ties are broken at random: nothing is left of the order. Leaving such maps out would
        favour explainers whose maps vanish.
        """
        ranked = spearman(maps, others)
        vanished = flat(others) & ~flat(maps) & ~unreadable(maps)
        found = [ranked.masked_fill(vanished, 0.0)]
        if self.classifier.modality == "image":
            found.append(ssim(maps, others))
        return {column.name: values for column, values in zip(self.columns(), found, strict=True)}

    def _undefined(self, maps: Tensor, *points: int) -> dict[str, Tensor]:
        return {column.name: maps.new_full((len(maps), *points), torch.nan) for column in self.columns()}


class RandomisationParameters(Parameters):
    """Parameters of randomisation.

    Stages are spread evenly over the layers. The first stage randomises the layer of the logits. The last
    stage randomises all layers, or, with the order "independent", the layer closest to the input.
    """

    order: Literal["cascading", "independent"] = Field(
        default="cascading",
        description="what a stage randomises: cascading, all layers from the logits down to one layer; "
        "independent, that layer alone",
    )
    stages: int = Field(
        default=5,
        ge=1,
        le=10_000,
        description="largest number of stages, each of which explains all inputs once more. CHOICE: 5, since "
        "a network may have hundreds of layers",
    )


@register
class Randomisation(_Similarity):
    """The similarity of the map with the maps of randomised networks, averaged over stages; lower is better.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3. Layers are the modules that
    own parameters. :mod:`tasks.metrics.random_weights` describes how new weights are drawn, also for class
    tokens, position embeddings and the input projections of attention. Buffers stay, except running
    statistics: the class embeddings of a CLIP-like model come from its text tower, and are no weights of the
    network. The explained class is the original one in every network. Maps are compared as prepared, so
    without evidence against a class, by Spearman's correlation, with mean ranks for ties, and for images also
    by the structural similarity.

    Curves hold the similarity after each stage. With the order "cascading", the last point belongs to a
    network without any of its learnt weights.
    """

    name: ClassVar[str] = "randomisation"
    title: ClassVar[str] = "Similarity of the map with those of randomised networks (Adebayo et al. 2018)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EXPLAINER})
    excludes: ClassVar[frozenset[ExplainerNeed]] = frozenset(
        {ExplainerNeed.TRAINED, ExplainerNeed.PREDICTION}
    )
    Parameters: ClassVar[type[Parameters]] = RandomisationParameters

    def __init__(self, classifier: BlackBox, parameters: RandomisationParameters) -> None:
        super().__init__(classifier)
        self.cascading, self.fill = parameters.order == "cascading", _FILLS[parameters.order]
        last = len(layers_with_weights(network_of(classifier))) - 1
        count = min(parameters.stages, last + 1)
        self.deepest: list[int] = np.linspace(last, 0, count).round().astype(int)[::-1].tolist()

    @staticmethod
    def axes(column: str, parameters: RandomisationParameters) -> Axes:
        layers = "more and more layers" if parameters.order == "cascading" else "one layer each"
        similar = "structural similarity" if column.endswith("ssim") else "rank correlation"
        return Axes(f"stage: {layers} randomised", similar, "numbers")

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; a curve has one point per stage.

        All is NaN for explainers to which the test does not apply: those with trained weights of their own,
        which do not follow the network's, and those that explain the predicted class only. Values are NaN
        where the map of a stage is. The rank correlation is NaN for flat maps, which have no order, and 0 at
        a stage whose map is flat. A map of zeros that stays one has a structural similarity of 1.
        """
        explain = batch.explainer
        if explain.needs & self.excludes:
            return Scores(self._undefined(maps), self._undefined(maps, len(self.deepest)))
        rows = torch.arange(len(maps), device=maps.device)
        found = []
        for layer in self.deepest:  # only one copy at a time, to save memory
            network = with_random_weights(self.classifier, range(layer + 1) if self.cascading else [layer])
            found.append(self._similarities(maps, explain(batch.inputs, rows, classifier=network)))
            free_weights(network)
        curves = {name: torch.stack([stage[name] for stage in found], 1) for name in found[0]}
        return Scores({name: curve.mean(1) for name, curve in curves.items()}, curves)


@register
class RandomLogit(_Similarity):
    """The similarity of the map with the map of another class for the same input; lower is better.

    Sixt, Granz and Landgraf, "When Explanations Lie", ICML 2020, section 4. The other class is drawn
    uniformly, per input, from its seed. With two classes, it is always the other one.
    """

    name: ClassVar[str] = "random_logit"
    title: ClassVar[str] = "Similarity of the map with that of a random other class (Sixt et al. 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EXPLAINER})
    excludes: ClassVar[frozenset[ExplainerNeed]] = frozenset({ExplainerNeed.PREDICTION})
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:  # noqa: ARG002
        super().__init__(classifier)

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        """Score maps; all is NaN for explainers that explain the predicted class only.

        Values are NaN where the map of the other class is. The rank correlation is NaN for flat maps, which
        have no order, and 0 where the map of the other class is flat.
        """
        explain = batch.explainer
        if explain.needs & self.excludes:
            return Scores(self._undefined(maps))
        classes = self.classifier.num_classes
        step = 1 + (uniform(batch.seeds ^ _CLASSES, 1)[:, 0] * (classes - 1)).long()
        rows = torch.arange(len(maps), device=maps.device)
        others = explain(batch.inputs, rows, targets=(batch.targets + step) % classes)
        return Scores(self._similarities(maps, others))
