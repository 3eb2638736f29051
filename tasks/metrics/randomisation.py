"""Whether maps change with what they should explain: the network's weights, and the class.

An explainer whose maps stay as they are does not show what the network has learnt. To pass is necessary, not
sufficient. The controls, the random one too, keep the seeds of their images, and so have similarity 1.
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
from tasks.metrics.base import Column, MetricBatch, Need, NoParameters, Scores
from tasks.metrics.preparation import unreadable
from tasks.metrics.random_weights import free_weights, layers_with_weights, network_of, with_random_weights
from tasks.metrics.registry import register
from tasks.metrics.similarity import flat, spearman, ssim

if TYPE_CHECKING:
    from explainers.models.black_box import BlackBox

_CLASSES = seed_of("random_logit")  # keeps the draw of a class apart from tie-breaks
_FILLS = {
    "cascading": "weights drawn anew, from the logits down to the input",
    "independent": "weights of one layer at a time drawn anew",
}


class _Similarity:
    """Rank correlation of maps with others of the same input; of images the structural similarity too."""

    name: ClassVar[str]
    fill: str | None = None

    def __init__(self, classifier: BlackBox) -> None:
        self.classifier = classifier

    def columns(self) -> list[Column]:
        names = [self.name, f"{self.name}_ssim"][: 2 if self.classifier.modality == "image" else 1]
        return [Column(name, -1.0, 1.0, "lower", self.fill) for name in names]

    def _similarities(self, maps: Tensor, others: Tensor) -> dict[str, Tensor]:
        """{column: (B,)} of maps and others, prepared; without a rank correlation if ``maps`` are flat.

        A flat map among ``others`` has a rank correlation of 0, which is what ties broken at random give on
        average: nothing is left of the order. To leave it out would favour explainers whose maps vanish.
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
    """``order``: the layers from the logits down to this one, or this one alone; ``stages`` at most.

    The stages are spread evenly over the layers: the first draws the layer of the logits anew, the last all
    layers (of order "independent": the one closest to the input). CHOICE: 5, for a network may have hundreds
    of layers and every stage explains everything once more.
    """

    order: Literal["cascading", "independent"] = "cascading"
    stages: int = Field(default=5, ge=1)


@register
class Randomisation(_Similarity):
    """Similarity of the map with the maps of randomised networks, as the mean over stages; lower is better.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3. Layers are the modules that
    own parameters; :mod:`tasks.metrics.random_weights` says how they are drawn, among them class tokens,
    position embeddings and the input projections of attention. Buffers stay, running statistics excepted: the
    class embeddings of a CLIP-like model are its text tower's, and no weights of the network. The class
    explained is the original one in every network. Maps are compared as prepared, so without the evidence
    against a class, by Spearman's correlation with mean ranks for ties and, of images, by the structural
    similarity.

    Curves hold the similarity after each stage; their last point is the network of which nothing is left.
    """

    name: ClassVar[str] = "randomisation"
    title: ClassVar[str] = "Similarity of the map with those of randomised networks (Adebayo et al. 2018)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EXPLAINER})
    Parameters: ClassVar[type[Parameters]] = RandomisationParameters

    def __init__(self, classifier: BlackBox, parameters: RandomisationParameters) -> None:
        super().__init__(classifier)
        self.cascading, self.fill = parameters.order == "cascading", _FILLS[parameters.order]
        last = len(layers_with_weights(network_of(classifier))) - 1
        count = min(parameters.stages, last + 1)
        self.deepest: list[int] = np.linspace(last, 0, count).round().astype(int)[::-1].tolist()

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        r"""Score (B, \*sites) prepared maps.

        NaN throughout for explainers to which the test does not apply: those with trained weights of their
        own, which do not follow the network's, and those that explain the predicted class only. NaN for maps
        of NaN, and where a stage gives one; the rank correlation also for flat maps, which have no order. A
        stage whose map is flat has a rank correlation of 0. A map of zeros that stays one has a structural
        similarity of 1.
        """
        explain = batch.explainer
        if explain.needs & {ExplainerNeed.TRAINED, ExplainerNeed.PREDICTION}:
            return Scores(self._undefined(maps), self._undefined(maps, len(self.deepest)))
        rows = torch.arange(len(maps), device=maps.device)
        found = []
        for layer in self.deepest:  # one copy at a time
            network = with_random_weights(self.classifier, range(layer + 1) if self.cascading else [layer])
            found.append(self._similarities(maps, explain(batch.inputs, rows, classifier=network)))
            free_weights(network)
        curves = {name: torch.stack([stage[name] for stage in found], 1) for name in found[0]}
        return Scores({name: curve.mean(1) for name, curve in curves.items()}, curves)


@register
class RandomLogit(_Similarity):
    """Similarity of the map with that of another class of the same input; lower is better.

    Sixt, Granz and Landgraf, "When Explanations Lie", ICML 2020, section 4. The other class is drawn for each
    input, uniformly, from its seed. Of two classes there is one other.
    """

    name: ClassVar[str] = "random_logit"
    title: ClassVar[str] = "Similarity of the map with that of a random other class (Sixt et al. 2020)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EXPLAINER})
    Parameters: ClassVar[type[Parameters]] = NoParameters

    def __init__(self, classifier: BlackBox, parameters: NoParameters) -> None:  # noqa: ARG002
        super().__init__(classifier)

    @torch.inference_mode()
    def score(self, batch: MetricBatch, maps: Tensor) -> Scores:
        r"""Score (B, \*sites) prepared maps.

        NaN throughout for explainers that explain the predicted class only. NaN for maps of NaN, and where
        that of the other class is; the rank correlation also for flat maps, which have no order. Where that
        of the other class is flat it is 0.
        """
        explain = batch.explainer
        if ExplainerNeed.PREDICTION in explain.needs:
            return Scores(self._undefined(maps))
        classes = self.classifier.num_classes
        step = 1 + (uniform(batch.seeds ^ _CLASSES, 1)[:, 0] * (classes - 1)).long()
        rows = torch.arange(len(maps), device=maps.device)
        others = explain(batch.inputs, rows, targets=(batch.targets + step) % classes)
        return Scores(self._similarities(maps, others))
