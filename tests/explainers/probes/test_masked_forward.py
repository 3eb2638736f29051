"""The masked-forward engine: the right scores, full batches, each distinct input once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import toys
from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.probes.masked_forward import (
    MaskedForward,
    target_log_odds,
    target_logit,
    target_probability,
)

CALLS: list[int] = []


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch) -> Classifier:
    classifier = toys.conv_gap()
    original = classifier.logits

    def noted(inputs: Tensor) -> Tensor:
        CALLS.append(len(inputs))
        return original(inputs)

    CALLS.clear()
    monkeypatch.setattr(classifier, "logits", noted)
    return classifier


def batch_of(classifier: Classifier) -> Batch:
    batch = toys.batch(classifier, 3)
    return Batch(batch.inputs, torch.tensor([4, 0, 2]), batch.seeds)


def test_scores_are_those_of_the_inputs_one_by_one(classifier: Classifier) -> None:
    batch = batch_of(classifier)
    images = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    dimmed = torch.linspace(0.1, 1, 7)

    def compose(rows: Tensor) -> Tensor:
        return batch.inputs[images[rows]] * dimmed[rows, None, None, None]

    masked = MaskedForward(classifier, batch.targets, 3, target_probability)
    found = masked.scores(images, compose)
    assert CALLS == [3, 3, 1]
    for i, image in enumerate(images.tolist()):
        alone = classifier.logits(compose(torch.tensor([i]))).softmax(1)[0, batch.targets[image]]
        torch.testing.assert_close(found[i], alone)
    assert masked.passes.tolist() == [3, 1, 3]


def test_equal_inputs_of_one_image_are_passed_once_and_equal_ones_of_two_images_twice(
    classifier: Classifier,
) -> None:
    batch = batch_of(classifier)
    images = torch.tensor([0, 0, 1, 0, 1, 1])
    same = torch.tensor([7, 5, 7, 7, 7, 9])
    level = torch.tensor([0.5, 0.9, 0.5, 0.5, 0.5, 0.1])

    def compose(rows: Tensor) -> Tensor:
        return batch.inputs[images[rows]] * level[rows, None, None, None]

    masked = MaskedForward(classifier, batch.targets, 64, target_logit)
    found = masked.scores(images, compose, same)
    assert CALLS == [4]
    assert masked.passes.tolist() == [2, 2, 0]
    whole = MaskedForward(classifier, batch.targets, 64, target_logit).scores(images, compose)
    torch.testing.assert_close(found, whole)


def test_variants_are_laid_out_image_by_image(classifier: Classifier) -> None:
    batch = batch_of(classifier)

    def compose(image: Tensor, variant: Tensor) -> Tensor:
        return batch.inputs[image] * (variant[:, None, None, None] / 4)

    found = MaskedForward(classifier, batch.targets, 4, target_logit).variants(5, compose)
    assert found.shape == (3, 5)
    assert CALLS == [4, 4, 4, 3]
    expected = classifier.logits(batch.inputs[1:2] * 0.75)[0, 0]
    torch.testing.assert_close(found[1, 3], expected)


def test_log_odds_are_what_they_say() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 5, 2, 2])
    for activation in ("softmax", "sigmoid"):
        asked = toys.conv_gap(activation=activation)
        p = target_probability(asked, logits, targets)
        torch.testing.assert_close(target_log_odds(asked, logits, targets), (p / (1 - p)).log())
        far = torch.tensor([[800.0, 0.0]])
        assert target_log_odds(asked, far, torch.tensor([0])).tolist() == [800.0]
