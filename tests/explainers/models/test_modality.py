"""What kinds of inputs differ in is said once: names, defaults, stored types and sites."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

import toys
from explainers.models.classifier import Classifier
from explainers.models.modality import MODALITIES, NO_TOKEN, Fill, ImageFill, ModalityName
from explainers.models.tensors import TensorClassifier
from explainers.models.text import TextClassifier
from sequences import texts
from text_toys import text_classifier


def test_every_modality_has_a_record_and_every_fill_a_name() -> None:
    assert set(MODALITIES) == set(get_args(ModalityName))
    assert list(MODALITIES["image"].fills) == list(get_args(ImageFill))
    assert {fill for each in MODALITIES.values() for fill in each.fills} == set(get_args(Fill))


@pytest.mark.parametrize("name", MODALITIES)
def test_what_stands_for_an_unreadable_input_can_be_stored(name: ModalityName) -> None:
    each = MODALITIES[name]
    assert np.full(1, each.nothing, each.stored)[0] == each.nothing


@pytest.mark.parametrize("kind", [Classifier, TextClassifier, TensorClassifier])
def test_a_classifier_is_what_its_modality_says(kind: type[Classifier]) -> None:
    assert kind.graded == MODALITIES[kind.modality].graded


def test_the_first_fill_is_a_classifiers_default() -> None:
    assert Classifier.fills[0] == "mean"
    assert TensorClassifier.fills[0] == "zero"
    with text_classifier("bert", 8) as masks, text_classifier("gpt2", 8) as removes:
        assert masks.fills == tuple(MODALITIES["text"].fills) == ("mask", "remove")
        assert removes.fills == ("remove",)


def test_sites_are_the_same_of_stored_and_prepared_inputs() -> None:
    with toys.conv_gap() as classifier:
        stored = torch.randint(0, 256, (2, 3, 32, 32)).to(torch.uint8)
        found = MODALITIES["image"].sites(stored)
        assert found.all()
        assert torch.equal(found, classifier.sites(classifier.inputs_of(stored)))
    tokens = texts([[3], [4, 5]], [[6]])
    found = MODALITIES["text"].sites(tokens.int())
    assert torch.equal(found, MODALITIES["text"].sites(tokens))
    assert found.sum(1).tolist() == [3, 1]
    assert not MODALITIES["text"].sites(torch.full_like(tokens, NO_TOKEN)).any()
    assert MODALITIES["tensor"].sites(torch.zeros(2, 4, 9)).shape == (2, 9)
