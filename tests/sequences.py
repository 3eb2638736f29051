"""Texts and series whose classifiers add up one term a site, so that their explanations are known."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from explainers.base import Batch, Need
from explainers.models.black_box import BlackBox, check_fill
from explainers.models.tensors import TensorClassifier
from explainers.probes.masked_forward import target_log_odds
from tasks.metrics.base import MetricBatch
from tasks.metrics.preparation import prepare

CLS, SEP, MASK = 0, 1, 2
LENGTH = 12


class Words:
    """A black box of texts: the logit of class 1 is the sum of the weights of the tokens that are there.

    Ids 0 to 2 are special and weigh nothing; 3 and more weigh as ``weights`` says.
    """

    modality: ClassVar = "text"
    fills: ClassVar = ("mask", "remove")
    graded: ClassVar = False
    layer: ClassVar = None
    input_shape: ClassVar = (2, LENGTH)
    num_classes: ClassVar = 2
    exclusive: ClassVar = True
    device: ClassVar = torch.device("cpu")
    fingerprint: ClassVar = "words"

    def __init__(self, weights: Tensor) -> None:
        self.network = torch.nn.Embedding.from_pretrained(torch.cat([torch.zeros(3), weights])[:, None])
        self.rows = 0

    def inputs_of(self, stored: Tensor) -> Tensor:
        return stored.long()

    def logits(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        ids = inputs[:, 0]
        logit = torch.where(ids >= 0, self.network(ids.clamp(min=0))[..., 0], 0).sum(1)
        return torch.stack([torch.zeros_like(logit), logit], 1)

    def probability(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def sites(self, inputs: Tensor) -> Tensor:
        return inputs[:, 1] >= 0

    def fill(self, inputs: Tensor, how: str) -> Tensor:
        check_fill(self, how)
        hidden = MASK if how == "mask" else -1
        return torch.stack([torch.where(self.sites(inputs), hidden, inputs[:, 0]), inputs[:, 1]], 1)

    def close(self) -> None: ...


def texts(*words: list[list[int]]) -> Tensor:
    """(B, 2, LENGTH) inputs of texts, each a list of words, each a list of ids."""
    inputs = torch.full((len(words), 2, LENGTH), -1)
    for row, text in zip(inputs, words, strict=True):
        ids = [CLS, *(token for word in text for token in word), SEP]
        numbers = [-1, *(number for number, word in enumerate(text) for _ in word), -1]
        row[:, : len(ids)] = torch.tensor([ids, numbers])
    return inputs


def batch_of(inputs: Tensor, forwards: int = 5) -> Batch:
    """For class 1."""
    ones = torch.ones(len(inputs), dtype=torch.int64)
    return Batch(inputs, ones, torch.arange(100, 100 + len(inputs)), None, forwards)


def metric_batch_of(classifier: Words | TensorClassifier, inputs: Tensor) -> MetricBatch:
    """The same for metrics. Its explainer is :class:`Absences`."""
    batch = batch_of(inputs)
    confidence = classifier.logits(inputs).softmax(1)[:, 1]
    explain = Absences(classifier, batch.targets)
    return MetricBatch(
        batch.inputs, batch.targets, batch.seeds, confidence, [], batch.forwards, explain=explain
    )


class Absences:
    """An explainer that metrics can run again: what each site's absence costs the target, in log-odds."""

    def __init__(self, classifier: BlackBox, targets: Tensor) -> None:
        self.classifier, self.targets = classifier, targets
        self.needs: frozenset[Need] = frozenset()

    def __call__(
        self,
        inputs: Tensor,
        rows: Tensor,
        *,
        targets: Tensor | None = None,
        classifier: BlackBox | None = None,
    ) -> Tensor:
        asked = classifier or self.classifier
        wanted = self.targets[rows] if targets is None else targets
        hidden = asked.fill(inputs, asked.fills[0])
        whole, *without = (
            target_log_odds(asked, asked.logits(torch.where(absent, hidden, inputs)), wanted)
            for absent in torch.eye(inputs.shape[2] + 1, dtype=torch.bool)[:, 1:]
        )
        maps = whole[:, None] - torch.stack(without, 1)
        return prepare(maps, tuple(inputs.shape[2:]), asked.sites(inputs))[0]


class LinearSeries(torch.nn.Module):
    """Logits (0, sum of weight * input) of (B, C, T)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        logit = (inputs * self.weight).sum((1, 2))
        return torch.stack([torch.zeros_like(logit), logit], 1)


def series() -> torch.nn.Module:
    """A callable for jobs: three channels of eight steps, of which channel 1 counts at steps 2 and 3."""
    weight = torch.zeros(3, 8)
    weight[1, 2:4] = 3.0
    return LinearSeries(weight)
