"""Erasure in closed form, and what it shares with every explainer of sequences."""

from __future__ import annotations

import pytest
import torch

import toys
from explainers.base import Explanation, Status
from explainers.erasure import Erasure
from explainers.models.black_box import BlackBox
from explainers.models.tensors import TensorClassifier
from explainers.requirements import unmet
from sequences import LinearSeries, Words, batch_of, texts

WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.25, 0.7, -1.0])
TEXTS = texts([[3], [4, 5], [6], [3]], [[7]], [[8, 8, 8], [4], [5, 6], [7], [3]])


def explain(
    classifier: BlackBox, inputs: torch.Tensor, forwards: int = 5, **parameters: object
) -> Explanation:
    return Erasure(classifier, Erasure.Parameters(**parameters)).explain(batch_of(inputs, forwards))


@pytest.mark.parametrize("fill", [None, "mask", "remove"])
def test_a_token_is_worth_the_probability_it_adds(fill: str | None) -> None:
    classifier = Words(WEIGHTS)
    found = explain(classifier, TEXTS, fill=fill)
    weights = [0.0] * 3 + WEIGHTS.tolist()
    for text, saliency in zip(TEXTS, found.maps, strict=True):
        ids, words = text.tolist()
        logit = sum(weights[token] for token in ids if token >= 0)
        without = torch.tensor([logit - weights[max(token, 0)] for token in ids])
        expected = torch.sigmoid(torch.tensor(logit)) - torch.sigmoid(without)
        torch.testing.assert_close(saliency, torch.where(torch.tensor(words) >= 0, expected, 0))
    assert found.details["forward_passes"].tolist() == [6, 2, 9]
    assert classifier.rows == 17


def test_a_text_depends_neither_on_its_batch_nor_on_the_step() -> None:
    together = explain(Words(WEIGHTS), TEXTS, forwards=64).maps
    for row in range(3):
        alone = explain(Words(WEIGHTS), TEXTS[row : row + 1], forwards=2).maps
        torch.testing.assert_close(alone[0], together[row])


def test_a_text_that_loses_nothing_anywhere_is_all_zero() -> None:
    assert explain(Words(torch.zeros(6)), TEXTS).statuses == [Status.ALL_ZERO] * 3


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_a_step_of_a_series_takes_all_its_channels_with_it(fill: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(3, 7, generator=generator), torch.randn(2, 3, 7, generator=generator)
    with TensorClassifier(LinearSeries(weight), (3, 7)) as classifier:
        found = explain(classifier, inputs, fill=fill)
    behind = inputs.mean(2, keepdim=True) if fill == "mean" else 0
    whole = (weight * inputs).sum((1, 2))[:, None]
    without = whole - (weight * (inputs - behind)).sum(1)
    torch.testing.assert_close(found.maps, whole.sigmoid() - without.sigmoid())


def test_images_and_their_fills_are_refused() -> None:
    with toys.conv_mlp() as classifier:
        assert "inputs are images" in str(unmet(Erasure.needs, classifier))
    with pytest.raises(ValueError, match="fill: 'blur' is not for texts; choose mask or remove"):
        explain(Words(WEIGHTS), TEXTS, fill="blur")
